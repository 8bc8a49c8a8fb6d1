"""The sampler in MMRotate's own detectors; docs/detectors.md and rotated.md show it.

MMRotate 1.x or onedl-mmrotate must be installed; docs/install.md says how.
"""

import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from support.rotated_boxes import make_rotated_samples, polygon_ious
from support.rotated_heads import (
    HAS_MMROTATE,
    TABLE,
    rotated_heads,
    small_rotated_model,
    try_rotated,
    with_rotated_table,
)
from support.shipped_heads import PAGE, cells_of, every_sample_checked, rows_of
from support.tools import ROOT, run_tool_here

from mmdet_ohem.reports import find_hardest, write_report
from mmdet_ohem.visualization import draw_mined

ROWS = rows_of(PAGE.read_text(), TABLE)
SMALL = 'oriented_rcnn_small_ohem_rotated_lookalikes.py'
pytestmark = [
    pytest.mark.mmrotate,
    pytest.mark.skipif(not HAS_MMROTATE, reason='MMRotate is not installed'),
]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmrotate')
    yield
    init_default_scope('mmdet')


def test_the_table_has_every_head_and_counts_them():
    cells = [cells_of(row) for row in ROWS]
    table = {config_file: int(count) for config_file, count, *_ in cells}
    assert table == rotated_heads()
    assert with_rotated_table(PAGE.read_text(), ROWS) == PAGE.read_text()


@pytest.mark.parametrize('row', ROWS, ids=[cells_of(row)[0] for row in ROWS])
def test_the_row_is_what_a_run_gives(row):
    config_file, num_configs, *_ = cells_of(row)
    assert try_rotated(config_file, int(num_configs)) == row


@pytest.mark.parametrize('config_file', [cells_of(row)[0] for row in ROWS])
def test_a_detector_takes_a_training_step(config_file):
    from mmdet.structures.bbox import HorizontalBoxes
    from mmrotate.registry import MODELS
    from mmrotate.structures.bbox import QuadriBoxes, RotatedBoxes

    torch.manual_seed(0)
    model = MODELS.build(small_rotated_model(config_file)).train()
    bbox_head = model.roi_head.bbox_head
    if isinstance(bbox_head, torch.nn.ModuleList):
        bbox_head = bbox_head[0]
    gt_type = QuadriBoxes if 'gliding' in config_file else RotatedBoxes
    samples = make_rotated_samples(HorizontalBoxes, gt_type, 0, bbox_head.num_classes)
    with every_sample_checked(model.roi_head) as sampled:
        losses = model(torch.randn(2, 3, 128, 128), samples, 'loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    assert all(0 < call.num_mined <= 8 for call in sampled)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """The config of the look-alikes, with a few images, and flipped ones."""
    folder = tmp_path_factory.mktemp('rotated')
    counts = ('--num-train', 4, '--num-test', 2)
    run_tool_here('tools/make_lookalikes.py', folder / 'data', '--rotated', *counts)
    config = Config.fromfile(ROOT / 'configs' / 'mmrotate' / SMALL)
    for loop in ('train', 'val', 'test'):
        loader = config[f'{loop}_dataloader']
        loader.dataset.data_root = f'{folder}/data/'
        loader.update(num_workers=0, persistent_workers=False)
    config.train_cfg.update(max_iters=2, val_interval=2)
    config.default_hooks.checkpoint.interval = 2
    config.default_hooks.logger.interval = 1
    config.custom_hooks[1].interval = 1
    config.dump(folder / 'small.py')
    return folder


def test_the_tools_train_test_draw_and_report(small):
    work_dir = small / 'work'
    run_tool_here('tools/train.py', small / 'small.py', '--work-dir', work_dir)
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    assert 'mining/loss_all_rois' in log.read_text()
    assert 'dota/mAP' in log.read_text()
    run_tool_here(
        *('tools/draw_pictures.py', small / 'small.py', work_dir / 'iter_2.pth'),
        *('--work-dir', small / 'pictures'),
    )
    assert list((small / 'pictures').glob('*.*'))
    run_tool_here(
        *('tools/hardest_images.py', small / 'small.py', work_dir / 'iter_2.pth'),
        *('--work-dir', small / 'hardest'),
    )
    assert 'x4' in (small / 'hardest' / 'hardest.csv').read_text()


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_boxes_of_a_report_are_those_of_the_annotations(small, direction):
    """The pipeline resizes by 0.8 and flips; the report undoes both."""
    from mmrotate.registry import DATASETS, MODELS

    config = Config.fromfile(small / 'small.py')
    for step in config.train_dataloader.dataset.pipeline:
        if step.type == 'mmdet.RandomFlip':
            step.update(prob=1.0, direction=direction)
    torch.manual_seed(0)
    detector = MODELS.build(config.model)
    detector.init_weights()
    torch.nn.init.normal_(detector.roi_head.bbox_head.fc_cls.weight, std=1)
    torch.save(dict(state_dict=detector.state_dict()), small / 'iter_1.pth')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    report = find_hardest(detector, dataset, [str(small / 'iter_1.pth')])
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        annotated = [instance['bbox'] for instance in info['instances']]
        found = [box.box for box in report.boxes if box.img_id == info['img_id']]
        ious = polygon_ious(annotated, found)
        assert ious.shape == (len(annotated), len(annotated))
        assert (ious.max(axis=1) > 0.97).all(), ious
        spots = [spot.box for spot in report.spots if spot.img_id == info['img_id']]
        assert all(len(spot) == 5 for spot in spots)
        if spots:
            assert polygon_ious(spots, annotated).max() < 0.11
    write_report(report, small / direction)
    picture = draw_mined(detector, dataset, 0)
    assert picture.dtype == np.uint8 and picture.ndim == 3


def test_the_commands_of_the_page_are_those_that_are_tested():
    page = (ROOT / 'docs' / 'rotated.md').read_text()
    commands = list(dict.fromkeys(re.findall(r'^python (tools/\w+\.py)', page, re.M)))
    assert commands == ['tools/make_lookalikes.py', 'tools/compare_samplers.py']


def test_samplers_are_compared(small):
    run_tool_here(
        *('tools/compare_samplers.py', small / 'small.py', '--seeds', 0),
        *('--samplers', 'random-bg0', 'mmdet-ohem', 'ohem', '--budget', 1),
        *('--work-dir', small / 'compare'),
    )
    assert 'MMDetection' in (small / 'compare' / 'table.md').read_text()
