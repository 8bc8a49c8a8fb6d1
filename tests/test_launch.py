from argparse import ArgumentParser

import pytest

from mmdet_ohem.launch import add_config_arguments, load_config


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
    with pytest.raises(SystemExit, match='There is no config nothing.py.'):
        load_config(parse('nothing.py'))
