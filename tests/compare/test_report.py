import json

import cv2
import numpy as np
import pytest

from mmdet_ohem.compare.config_changes import LABELS
from mmdet_ohem.compare.report import draw, table, write_report


def result(sampler: str, seed: int, score: float, **others) -> dict:
    measured = dict(loss_all_rois=0.5, memory_mb=100)
    measured |= dict(seconds_per_iteration=0.2, runs_at_a_time=1)
    return dict(sampler=sampler, seed=seed, mAP=score, **(measured | others))


def test_the_table_worked_out_by_hand():
    results = [
        result('random', 0, 0.5, seconds_per_iteration=0.1, memory_mb=200),
        result('ohem', 0, 0.75, loss_all_rois=None, memory_mb=None),
        result('random', 1, 0.6, loss_all_rois=1.0, seconds_per_iteration=0.3),
    ]
    results[2]['runs_at_a_time'] = 4
    assert table(results).splitlines()[2:] == [
        f'| {LABELS["random"]} | 2 | 0.550 | 0.500 to 0.600 | 0.750 '
        '| 0.20 (1 to 4) | 150 |',
        f'| {LABELS["ohem"]} | 1 | 0.750 | 0.750 to 0.750 | - | 0.20 (1) | - |',
    ]


def test_columns_of_the_background_worked_out_by_hand():
    fp, alarms = 'background/fp_per_image@recall0.8', 'background/false_alarms@0.5'
    results = [
        result('random', 0, 0.5, **{fp: 0.5, alarms: 0.25}),
        result('random', 1, 0.6, **{fp: 1.5, alarms: 0.5}),
        result('ohem', 0, 0.75, **{fp: float('nan'), alarms: 0.0}),
    ]
    head, line, random, ohem = table(results).splitlines()
    assert head.endswith(
        '| memory, MB | false positives per empty image at recall 0.8 '
        '| empty images with a false alarm at score 0.5 |'
    )
    assert line == '|---|---|---|---|---|---|---|---|---|'
    assert random.endswith('| 100 | 1.000 | 0.375 |')
    assert ohem.endswith('| 100 | not reached | 0.000 |')


def test_columns_of_a_mean_over_ious_worked_out_by_hand():
    results = [
        result('random', 0, 0.5, AP50=0.75, AP75=0.25),
        result('random', 1, 0.5, AP50=0.25, AP75=0.5),
        result('ohem', 0, 0.75),  # tested by an older version
    ]
    head, line, random, ohem = table(results).splitlines()
    assert head.endswith('| memory, MB | AP50 | AP75 |')
    assert line == '|---|---|---|---|---|---|---|---|---|'
    assert random.endswith('| 100 | 0.500 | 0.375 |')
    assert ohem.endswith('| 100 | - | - |')


@pytest.mark.parametrize('samplers', [['ohem'], ['random', 'ohem'], list(LABELS)])
def test_nothing_is_cut_off_in_the_picture(samplers):
    results = [result(sampler, 0, 0.5) for sampler in samplers]
    curves = {(sampler, 0): {10: 0.25, 20: 0.125} for sampler in samplers}
    figure = draw(results, curves)
    figure.draw_without_rendering()
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_what_is_written(tmp_path):
    results = [
        result(sampler, seed, 0.5 + 0.1 * seed)
        for sampler in ('random', 'ohem', 'focal')
        for seed in (0, 1)
    ]
    curves = {
        ('random', 0): {10: 3.0, 20: 2.0},
        ('random', 1): {10: 1.0, 20: 1.0, 30: 1.0},
        ('ohem', 0): {10: 2.5, 20: 0.5},
        ('ohem', 1): {10: 2.5, 20: 0.5},
        ('focal', 0): {},
        ('focal', 1): {},
    }
    write_report(results, curves, tmp_path)
    assert json.loads((tmp_path / 'results.json').read_text()) == results
    text = (tmp_path / 'table.md').read_text()
    assert table(results) in text
    assert 'The seeds show no difference between any two samplers.' in text
    left, right = np.hsplit(cv2.imread(str(tmp_path / 'curves.png')).astype(int), 2)

    def pixels(picture, blue_green_red):
        return (np.abs(picture - blue_green_red).max(axis=2) < 30).sum()

    # Matplotlib's first three colours: two curves, and dots of three samplers.
    for colour, has_curve in (
        ((180, 119, 31), True),
        ((14, 127, 255), True),
        ((44, 160, 44), False),
    ):
        assert (pixels(left[:, :-100], colour) > 300) == has_curve
        assert pixels(right, colour) > 30
