"""Which differences between samplers the seeds show, and which may be chance.

Shapes:
    S: samplers, P: pairs of them
    n: seeds of a sampler
"""

import functools
import statistics
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from scipy.stats import ttest_ind_from_stats

# How often equal samplers may look different, in all pairs together.
LEVEL = 0.05
# COCO's scores are rounded to 0.001. That alone gives a standard deviation as this,
# even where all seeds round to the same score.
LEAST_STD = 0.001 / 12**0.5
# The usual aim: a difference that is there is shown in 80 of 100 comparisons.
POWER = 0.8
MAX_SEEDS = 100
# Simulated comparisons: the power comes out within 0.02.
REPEATS = 2000


def told_apart(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Which samplers differ: Welch's t test on each pair, with Holm's correction over
    all pairs, at 5%.

    Welch's test takes samplers whose seeds spread differently. Of equal samplers, with
    as many seeds for each, any two are told apart in at most 5% of comparisons. Two
    samplers alone with three seeds or two, of which one spreads several times as widely
    as the other, are the exception: up to 6% and 7% in simulation.

    Args:
        scores: S arrays (..., n) float, n of 2 or more; leading dimensions are
            comparisons of their own.

    Returns:
        (..., S, S) bool, symmetric.
    """
    nums = np.array([of_it.shape[-1] for of_it in scores])
    means = np.stack([of_it.mean(axis=-1) for of_it in scores], axis=-1)
    stds = np.stack([_std(of_it) for of_it in scores], axis=-1)
    a, b = np.triu_indices(len(scores), k=1)
    test = ttest_ind_from_stats(
        *(means[..., a], stds[..., a], nums[a]),
        *(means[..., b], stds[..., b], nums[b]),
        equal_var=False,
    )
    apart = np.zeros((*means.shape, len(scores)), dtype=bool)
    apart[..., a, b] = apart[..., b, a] = _holm(test.pvalue)
    return apart


def _std(scores: np.ndarray) -> np.ndarray:
    return np.maximum(scores.std(axis=-1, ddof=1), LEAST_STD)


def _holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down test (1979): (..., P) to bool, which are below their level."""
    order = p_values.argsort(axis=-1)
    levels = LEVEL / np.arange(p_values.shape[-1], 0, -1)
    is_below = np.take_along_axis(p_values, order, axis=-1) <= levels
    rejected = np.empty_like(is_below)
    passed = np.logical_and.accumulate(is_below, axis=-1)
    np.put_along_axis(rejected, order, passed, axis=-1)
    return rejected


def verdict(scores: dict[str, list[float]]) -> str:
    """What a comparison says, in sentences of Markdown.

    Args:
        scores: of each sampler, by the name it has in the text, one for each seed.
    """
    means = {name: statistics.mean(of_it) for name, of_it in scores.items()}
    names = sorted(means, key=means.get, reverse=True)
    parts = [f'Highest mean mAP: {names[0]} ({means[names[0]]:.3f}).']
    single = [name for name in names if len(scores[name]) == 1]
    names = [name for name in names if name not in single]
    if single:
        parts.append(
            f'Of one seed: {_listed(single)}. Nothing is known of the spread there: '
            'give more --seeds before you believe a difference.'
        )
    if len(names) > 1:
        arrays = [np.array(scores[name]) for name in names]
        apart = told_apart(arrays)
        parts += _differences(names, [means[name] for name in names], apart)
        parts += _outlook(names, arrays, apart)
        parts.append(
            'If all samplers were equal, such a comparison would show a difference in '
            "about 5% of cases at most (Welch's t test at 5%, with Holm's correction "
            'over all pairs of samplers).'
        )
    return '\n\n'.join(parts)


def _differences(names: list[str], means: list[float], apart: np.ndarray) -> list[str]:
    """Paragraphs that name each pair once, at the higher of the two samplers."""
    if not apart.any():
        return ['The seeds show no difference between any two samplers.']
    shown, open_ = [], []
    for i, name in enumerate(names):
        lower = range(i + 1, len(names))
        if told := [j for j in lower if apart[i, j]]:
            gaps = [f'{names[j]} (by {means[i] - means[j]:.3f})' for j in told]
            shown.append(f'- {name} is higher than {_listed(gaps)}.')
        if others := [names[j] for j in lower if not apart[i, j]]:
            open_.append(f'- {name} and {_listed(others)}.')
    parts = ['The seeds show these differences:', '\n'.join(shown)]
    if open_:
        parts += ['They show none, and what is seen may be chance, between:']
        parts += ['\n'.join(open_)]
    return parts


def _outlook(
    names: list[str], scores: list[np.ndarray], apart: np.ndarray
) -> list[str]:
    """Paragraphs on the samplers that are not told from the first, the highest: how
    often comparisons would show the gap that is seen, and with how many seeds they
    mostly would."""
    means = [of_it.mean() for of_it in scores]
    stds = [_std(of_it) for of_it in scores]

    @functools.cache
    def shown(*nums: int) -> np.ndarray:
        """(S,) in which part of comparisons each sampler is told from the first."""
        rng = np.random.default_rng(0)
        drawn = [
            rng.normal(mean, std, (REPEATS, num))
            for mean, std, num in zip(means, stds, nums, strict=True)
        ]
        return told_apart(drawn)[:, 0].mean(axis=0)

    points = []
    for i in np.flatnonzero(~apart[0])[1:].tolist():  # [0] is the first itself
        now = shown(*map(len, scores))[i]
        enough = bisect_left(
            range(MAX_SEEDS + 1),
            POWER,
            lo=2,
            key=lambda num, i=i: shown(*[num] * len(names))[i],
        )
        many = enough if enough <= MAX_SEEDS else f'more than {MAX_SEEDS}'
        points.append(
            f'- {names[i]}, {means[0] - means[i]:.3f} lower: {many} seeds of each '
            f'sampler show it in {POWER:.0%} of comparisons; those that there are, in '
            f'{now:.0%}.'
        )
    if not points:
        return []
    return [
        f'How many seeds the gaps below {names[0]} need, if the means and spreads that '
        'are seen here are the true ones (few seeds tell them only roughly):',
        '\n'.join(points),
    ]


def _listed(names: list[str]) -> str:
    return '; '.join(names)
