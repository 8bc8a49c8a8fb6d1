import errno
import os
import warnings
from argparse import ArgumentParser
from unittest import mock

import pytest
from mmdet.models.task_modules.samplers import OHEMSampler as MMDetOHEMSampler
from mmengine.config import Config
from mmengine.runner import Runner
from support.tools import run_tool_here

from mmdet_ohem import OHEMSampler
from mmdet_ohem.runs.launch import (
    add_config_arguments,
    errors_as_sentences,
    is_mmdets_ohem,
    load_config,
    lost_files_as_sentences,
)


def parse(*words: str):
    parser = ArgumentParser()
    parser.add_argument('config')
    add_config_arguments(parser)
    return parser.parse_args(words)


def test_the_work_dir_is_named_after_the_config(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("lr = 1\nnested = dict(key='old')\n")
    cfg = load_config(parse(str(path), '--cfg-options', 'nested.key=new', 'lr=[1,2]'))
    assert cfg.work_dir == 'work_dirs/mine'
    assert cfg.nested.key == 'new' and cfg.lr == [1, 2]
    assert load_config(parse(str(path), '--work-dir', 'w')).work_dir == 'w'
    path.write_text("work_dir = 'of_the_config'\n")
    assert load_config(parse(str(path))).work_dir == 'of_the_config'


def test_a_missing_config_is_one_sentence():
    with pytest.raises(FileNotFoundError, match='There is no config nothing.py.'):
        load_config(parse('nothing.py'))


@pytest.mark.parametrize(
    'sampler, expected',
    [
        ('OHEMSampler', True),
        ('mmdet.OHEMSampler', True),
        (MMDetOHEMSampler, True),
        ('mmdet_ohem.OHEMSampler', False),
        (OHEMSampler, False),
        ('RandomSampler', False),
    ],
)
@pytest.mark.parametrize('in_a_cascade', [False, True])
def test_mmdetections_sampler_of_the_same_name_is_told_apart(
    sampler, expected, in_a_cascade
):
    stage = dict(sampler=dict(type=sampler, num=64))
    rcnn = [dict(sampler=dict(type='RandomSampler')), stage] if in_a_cascade else stage
    cfg = Config(dict(model=dict(train_cfg=dict(rcnn=rcnn))))
    assert is_mmdets_ohem(cfg) is expected
    assert not is_mmdets_ohem(Config(dict(model=dict(type='RetinaNet'))))


@pytest.mark.parametrize('sampler', ['OHEMSampler', 'mmdet_ohem.OHEMSampler'])
def test_training_with_mmdetections_sampler_says_so_in_one_line(
    sampler, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Runner, 'from_cfg', mock.Mock())
    path = tmp_path / 'mine.py'
    path.write_text(
        f"sampler = dict(type='{sampler}', num=64)\n"
        'model = dict(train_cfg=dict(rcnn=dict(sampler=sampler)))\n'
    )
    run_tool_here('tools/train.py', path, '--work-dir', tmp_path)
    said = capsys.readouterr().out.splitlines()
    if sampler == 'mmdet_ohem.OHEMSampler':
        assert not said
    else:
        (line,) = said
        assert "type='mmdet_ohem.OHEMSampler'" in line
        assert 'from mmdet_ohem import OHEMSampler' in line
    assert Runner.from_cfg.call_count == 1


VARIABLES = """
data_root = 'data/mine/'
scale = (400, 300)
lr = 0.01
train_dataloader = dict(
    dataset=dict(data_root=data_root, pipeline=[dict(type='Resize', scale=scale)])
)
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=lr, momentum=0.01))
"""


def load_with(path, *options):
    path.write_text(VARIABLES)
    return load_config(parse(str(path), '--cfg-options', *options))


@pytest.mark.parametrize(
    'option, words',
    [
        (
            'data_root=elsewhere/',
            'data_root would change nothing.*Set test_dataloader.dataset.data_root and '
            'train_dataloader.dataset.data_root and val_dataloader.dataset.data_root',
        ),
        ('scale=(1,2)', 'Set train_dataloader.dataset.pipeline.0.scale instead'),
        ('lr=0.1', 'Set optim_wrapper.optimizer.lr instead'),
    ],
)
def test_a_variable_of_the_config_is_refused_with_its_keys(option, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        load_with(tmp_path / 'mine.py', option)


def test_a_key_that_nobody_reads_is_said(tmp_path):
    with pytest.warns(UserWarning, match="no run reads 'randomnes'; is it misspelt"):
        load_with(tmp_path / 'mine.py', 'randomnes.seed=1')


def test_the_test_loader_is_a_copy_of_the_validations(tmp_path):
    key = 'val_dataloader.dataset.data_root'
    with pytest.warns(UserWarning, match='test_dataloader is a copy of val_dataloader'):
        load_with(tmp_path / 'mine.py', f'{key}=there/')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        both = [f'{key}=there/', f'{key.replace("val", "test")}=there/']
        cfg = load_with(tmp_path / 'mine.py', *both)
    assert cfg.test_dataloader.dataset.data_root == 'there/'


def test_what_cannot_be_written_is_named():
    def said(context, number: int, *path: str) -> str:
        with pytest.raises(SystemExit) as stopped, context:
            raise OSError(number, os.strerror(number), *path)
        return str(stopped.value)

    for context in (errors_as_sentences, lambda: lost_files_as_sentences('work')):
        for number in (errno.ENOSPC, errno.EROFS):
            words = f'disk/a cannot be written ({os.strerror(number)}): make room'
            assert said(context(), number, 'disk/a').startswith(words)
        # It may be one that cannot be read.
        assert said(context(), errno.EACCES, 'a').startswith('[Errno 13] Permission')
    full = said(lost_files_as_sentences('work'), errno.ENOSPC)
    assert full.startswith('work cannot be written (No space left on device)')
