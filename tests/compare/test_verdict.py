"""Which differences are shown: held against SciPy's own test, and simulated."""

import itertools
import re
import warnings

import numpy as np
import pytest
from scipy.stats import ttest_ind

from mmdet_ohem.compare.verdict import told_apart, verdict

# Of BCCD's samplers some spread widely and some do not (docs/samplers.md).
BCCD_STDS = (0.03, 0.0075, 0.05, 0.01, 0.02, 0.005, 0.03, 0.0075)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def plain_holm(p_values: dict) -> set:
    """Holm (1979): from the smallest on, as long as each is below 5% of those left."""
    rejected = set()
    for pair in sorted(p_values, key=p_values.get):
        if p_values[pair] > 0.05 / (len(p_values) - len(rejected)):
            break
        rejected.add(pair)
    return rejected


@pytest.mark.parametrize('nums', [(3, 3), (3, 3, 3, 3), (10,) * 8, (2, 5, 10)])
def test_pairs_equal_scipys_test_and_a_plain_loop(nums):
    found = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        means = rng.uniform(0.7, 0.8, len(nums))
        stds = rng.uniform(0.005, 0.03, len(nums))
        scores = [rng.normal(*of_it) for of_it in zip(means, stds, nums, strict=True)]
        p_values = {
            (a, b): ttest_ind(scores[a], scores[b], equal_var=False).pvalue
            for a, b in itertools.combinations(range(len(nums)), 2)
        }
        apart = told_apart(scores)
        expected = plain_holm(p_values)
        assert {tuple(p) for p in np.argwhere(np.triu(apart)).tolist()} == expected, (
            seed
        )
        assert (apart == apart.T).all()
        found += len(expected)
    assert found > 5


@pytest.mark.parametrize('num_seeds', [3, 5, 10])
@pytest.mark.parametrize('stds', [(0.01,) * 8, BCCD_STDS], ids=['equal', 'bccd'])
@pytest.mark.parametrize('num_samplers', range(2, 9))
def test_equal_samplers_are_told_apart_in_5_percent_of_comparisons(
    num_samplers, stds, num_seeds
):
    rng = np.random.default_rng(0)
    num = 2000
    scores = [rng.normal(0.8, std, (num, num_seeds)) for std in stds[:num_samplers]]
    false_alarms = told_apart(scores).any(axis=(1, 2)).mean()
    # Three standard errors of a simulation of 5%.
    assert false_alarms <= 0.05 + 3 * (0.05 * 0.95 / num) ** 0.5


@pytest.mark.parametrize('std', [0, 0.0003, 0.001])
@pytest.mark.parametrize('num_samplers', [2, 8])
def test_nor_are_they_when_scores_are_rounded(num_samplers, std):
    """COCO's are, to 0.001: seeds may well give the same."""
    rng = np.random.default_rng(0)
    num = 2000
    mean = 0.4 + rng.uniform(0, 0.001, (num, 1))
    scores = [rng.normal(mean, std, (num, 3)).round(3) for _ in range(num_samplers)]
    assert told_apart(scores).any(axis=(1, 2)).mean() <= 0.065


def three_seeds(mean: float, std: float) -> list[float]:
    """Scores whose mean and standard deviation are these."""
    return [mean - std, mean, mean + std]


@pytest.mark.parametrize('gap, num', [(0.8, 26), (1.0, 17), (1.2, 12), (1.4, 9)])
def test_the_number_of_seeds_is_cohens(gap, num):
    """Two samples at 5%, two-sided, power 80%: Cohen, Statistical Power Analysis for
    the Behavioral Sciences, 1988, table 2.4.1; gaps in standard deviations."""
    std = 0.02
    scores = dict(a=three_seeds(0.5 + gap * std, std), b=three_seeds(0.5, std))
    said = re.search(r'b, (.*) lower: (\d+) seeds of each', verdict(scores))
    assert said.group(1) == f'{gap * std:.3f}'
    assert int(said.group(2)) == pytest.approx(num, abs=1)


def test_each_pair_is_named_once():
    scores = {
        'middle': three_seeds(0.70, 0.001),
        'lowest': three_seeds(0.60, 0.001),
        'wide': three_seeds(0.72, 0.05),
        'highest': three_seeds(0.80, 0.001),
    }
    text = verdict(scores).split('\n\n')
    assert text[0] == 'Highest mean mAP: highest (0.800).'
    assert text[2].splitlines() == [
        '- highest is higher than middle (by 0.100); lowest (by 0.200).',
        '- middle is higher than lowest (by 0.100).',
    ]
    assert text[4].splitlines() == ['- highest and wide.', '- wide and middle; lowest.']
    assert text[5].startswith('How many seeds the gaps below highest need')
    (outlook,) = text[6].splitlines()  # of wide alone
    assert re.fullmatch(
        r'- wide, 0.080 lower: \d+ seeds of each sampler show it in 80% of comparisons;'
        r' those that there are, in \d+%.',
        outlook,
    )
    assert 'in about 5% of cases at most' in text[7]


def test_one_seed_shows_nothing():
    text = verdict(dict(random=[0.5], ohem=[0.9]))
    assert text == (
        'Highest mean mAP: ohem (0.900).\n\nOf one seed: ohem; random. Nothing is '
        'known of the spread there: give more --seeds before you believe a difference.'
    )


def test_a_sampler_of_one_seed_is_left_out():
    scores = dict(one=[0.9], a=three_seeds(0.8, 0.001), b=three_seeds(0.7, 0.001))
    text = verdict(scores)
    assert 'Of one seed: one.' in text
    assert '- a is higher than b (by 0.100).' in text
    assert 'gaps' not in text


def test_seeds_without_a_spread():
    equal = verdict(dict(a=[0.5] * 3, b=[0.5] * 3, c=[0.1 + 0.2] * 3))
    assert '- a is higher than c (by 0.200).' in equal
    assert '- a and b.' in equal
    assert '- b, 0.000 lower: more than 100 seeds' in equal
    # The last digit of COCO's scores.
    assert not told_apart([np.array([0.374] * 2), np.array([0.375] * 2)]).any()


def test_a_sampler_alone_has_nothing_beside_it():
    assert verdict(dict(a=[0.5, 0.6])) == 'Highest mean mAP: a (0.550).'
