"""Files for evaluation servers, with configs that inherit the package's."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.datasets import CocoDataset, VOCDataset
from mmdet.evaluation import CocoMetric
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from support import small_data
from support.tools import ROOT, run_tool_here

from mmdet_ohem.evaluation import VOCServerFiles
from mmdet_ohem.hooks import ServerFilesHook

SMALL = """
_base_ = {base!r}

from mmdet_ohem.datasets import with_step

test_dataloader = with_step(_base_.test_dataloader, 'Resize', scale=(64, 48))
test_dataloader.update(num_workers=0, persistent_workers=False)
model = dict(
    backbone=dict(init_cfg=None),
    roi_head=dict(bbox_head=dict(init_cfg=None, fc_out_channels=(24, 16))),
    # Without training all classes are as likely.
    test_cfg=dict(rcnn=dict(max_per_img=5)),
)
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('servers')
    small_data.write_everything(
        root, VOCDataset.METAINFO['classes'], CocoDataset.METAINFO['classes']
    )
    return root


@pytest.mark.parametrize(
    'base, file',
    [
        ('fast_rcnn_vgg16_ohem_voc12', 'results.tar.gz'),
        ('fast_rcnn_vgg16_ohem_coco_testdev', 'test-dev.bbox.json'),
    ],
)
def test_the_files_of_an_inheriting_config_are_not_in_the_folder_of_its_base(
    base, file, data, monkeypatch
):
    monkeypatch.chdir(data)
    init_default_scope('mmdet')
    mine = data / f'mine_{file}.py'
    mine.write_text(SMALL.format(base=str(ROOT / 'configs' / f'{base}.py')))
    detector = MODELS.build(Config.fromfile(mine).model)
    torch.save(dict(state_dict=detector.state_dict(), meta={}), 'weights.pth')
    run_tool_here('tools/test.py', mine, 'weights.pth')
    assert Path('work_dirs', mine.stem, file).exists()
    assert not Path('work_dirs', base).exists()


def test_a_folder_that_the_config_names_stays():
    named = [
        VOCServerFiles(out_dir='here'),
        CocoMetric(format_only=True, outfile_prefix='here/test-dev'),
        CocoMetric(outfile_prefix='no-files-for-a-server'),
    ]
    nameless = [
        VOCServerFiles(),
        CocoMetric(format_only=True, outfile_prefix='test-dev'),
    ]
    evaluator = SimpleNamespace(metrics=[*named, *nameless])
    runner = SimpleNamespace(work_dir='work', test_evaluator=evaluator)
    for _ in range(2):  # a second test of the same run
        ServerFilesHook().before_test(runner)
    assert named[0].out_dir == 'here'
    prefixes = [metric.outfile_prefix for metric in named[1:]]
    assert prefixes == ['here/test-dev', 'no-files-for-a-server']
    assert nameless[0].out_dir == 'work'
    assert nameless[1].outfile_prefix == 'work/test-dev'
