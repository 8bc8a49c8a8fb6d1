import itertools
import json

import cv2
import numpy as np
import pytest

from mmdet_ohem.compare_configs import LABELS
from mmdet_ohem.compare_report import table, verdict, write_report


def result(sampler: str, seed: int, score: float, **others) -> dict:
    measured = dict(loss_all_rois=0.5, seconds_per_iteration=0.2, memory_mb=100)
    return dict(sampler=sampler, seed=seed, mAP=score, **(measured | others))


def test_the_table_worked_out_by_hand():
    results = [
        result('random', 0, 0.5, seconds_per_iteration=0.1, memory_mb=200),
        result('ohem', 0, 0.75, loss_all_rois=None, memory_mb=None),
        result('random', 1, 0.6, loss_all_rois=1.0, seconds_per_iteration=0.3),
    ]
    assert table(results).splitlines()[2:] == [
        f'| {LABELS["random"]} | 2 | 0.550 | 0.500 to 0.600 | 0.750 | 0.20 | 150 |',
        f'| {LABELS["ohem"]} | 1 | 0.750 | 0.750 to 0.750 | - | 0.20 | - |',
    ]


def test_a_difference_within_the_spread_is_called_so():
    scores = {
        'random': (0.50, 0.60),  # below the worst seed of the best
        'ohem': (0.70, 0.80),
        'mmdet-ohem': (0.40, 0.70),  # reaches it
        'ohem-per-label': (0.73, 0.75),  # lies within
    }
    results = [
        result(sampler, seed, score)
        for sampler, of_seeds in scores.items()
        for seed, score in enumerate(of_seeds)
    ]
    assert verdict(results).splitlines() == [
        'Highest mAP: mmdet_ohem.OHEMSampler.',
        'Within the spread of the seeds: mmdet_ohem.OHEMSampler, nms_per_label=True '
        "(0.010 behind); MMDetection's OHEMSampler (0.200 behind).",
        'Behind it by more than the spread of the seeds: random, bg_lo 0.1 (Fast '
        'R-CNN) (0.200 behind).',
        '(By chance, with 2 seeds 1 in 3 pairs of equal samplers is told apart like '
        'this.)',
    ]


@pytest.mark.parametrize('num_seeds', [2, 3, 4])
def test_chance_counted_by_hand(num_seeds):
    """Every way to deal ranks to two samplers."""
    ranks = range(2 * num_seeds)
    hands = [set(hand) for hand in itertools.combinations(ranks, num_seeds)]
    apart = sum(
        max(h) < min(set(ranks) - h) or min(h) > max(set(ranks) - h) for h in hands
    )
    results = [result('random', s, 0.1) for s in range(num_seeds)]
    results += [result('ohem', s, 0.2) for s in range(num_seeds)]
    assert f'1 in {len(hands) // apart} pairs' in verdict(results)


def test_one_seed_bears_nothing_out():
    words = verdict([result('random', 0, 0.5), result('ohem', 0, 0.9)])
    assert words.startswith('Highest mAP: mmdet_ohem.OHEMSampler. With one seed')


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
    assert table(results) in text and verdict(results) in text
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
