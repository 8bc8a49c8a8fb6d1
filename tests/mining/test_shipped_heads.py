"""The sampler in every RoI head that MMDetection ships; docs/detectors.md shows it."""

import pytest
import torch
from support.shipped_heads import (
    OURS,
    PAGE,
    THEIRS,
    build_head,
    cells_of,
    rows_of,
    run_loss,
    shipped_heads,
    small_head,
    try_both,
    with_table,
)

ROWS = rows_of(PAGE.read_text())


@pytest.mark.slow
def test_the_table_has_every_head_and_counts_them():
    cells = [cells_of(row) for row in ROWS]
    table = {config_file: int(count) for config_file, count, *_ in cells}
    assert table == shipped_heads()
    assert with_table(PAGE.read_text(), ROWS) == PAGE.read_text()
    assert f'`python -m {shipped_heads.__module__}`' in PAGE.read_text()


@pytest.mark.parametrize('row', ROWS, ids=[cells_of(row)[0] for row in ROWS])
def test_the_row_is_what_a_run_gives(row):
    config_file, num_configs, *_ = cells_of(row)
    found, message = try_both(config_file, int(num_configs))
    assert found == row
    assert message in ' '.join(PAGE.read_text().split())


def test_pointrend_needs_foreground_with_its_own_sampler_too():
    config = small_head('point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py', None)
    roi_head = build_head(config)
    run_loss(roi_head, seed=0)
    with pytest.raises(AssertionError, match='RoI is a empty tensor'):
        run_loss(roi_head, seed=1, num_gts=0)


def test_scnet_ranks_every_stage_by_its_own_head():
    """SCNet never says which stage it is at; MMDetection's OHEMSampler asks for it and
    ranks all by the last. (The table has no word for it.)"""
    stages = {}
    for sampler_type in (OURS, THEIRS):
        roi_head = build_head(
            small_head('scnet/scnet_r50_fpn_1x_coco.py', sampler_type)
        )
        for sampler in roi_head.bbox_sampler:
            sampler.num = 16
        forward, asked = roi_head._bbox_forward, []

        def recorded(stage, *args, forward=forward, asked=asked, **kwargs):
            if not torch.is_grad_enabled():
                asked.append(stage)
            return forward(stage, *args, **kwargs)

        roi_head._bbox_forward = recorded
        run_loss(roi_head, seed=0)
        stages[sampler_type] = set(asked)
    assert stages == {OURS: {0, 1, 2}, THEIRS: {2}}
