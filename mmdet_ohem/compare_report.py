"""What a comparison of samplers says: a table, whom to believe, and curves."""

import json
import math
import os
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from mmdet_ohem.compare_configs import LABELS
from mmdet_ohem.curves import draw_curves, save_figure
from mmdet_ohem.whole_file import whole_file


def write_report(results: list[dict], curves: dict, folder: str | os.PathLike) -> None:
    """Write table.md, results.json and curves.png.

    Args:
        results: of `compare`.
        curves: {(sampler, seed): {iteration: loss over all RoIs}}; empty: no line.
        folder: where to.
    """
    folder = Path(folder)
    draw(results, curves, folder / 'curves.png')
    for name, text in (
        ('results.json', json.dumps(results, indent=2)),
        ('table.md', f'{table(results)}\n{verdict(results)}\n'),
    ):
        with whole_file(folder / name) as partial:
            partial.write_text(text)


def table(results: list[dict]) -> str:
    """A Markdown table: means of the seeds, one row per sampler."""
    rows = [
        '| sampler | seeds | mAP | lowest to highest | loss over all RoIs '
        '| s / iteration | memory, MB |',
        '|---|---|---|---|---|---|---|',
    ]
    for sampler, of_sampler in _by_sampler(results).items():
        scores = [result['mAP'] for result in of_sampler]
        seconds = statistics.median(r['seconds_per_iteration'] for r in of_sampler)
        rows.append(
            f'| {LABELS[sampler]} | {len(scores)} | {statistics.mean(scores):.3f} '
            f'| {min(scores):.3f} to {max(scores):.3f} '
            f'| {_mean(of_sampler, "loss_all_rois", ".3f")} | {seconds:.2f} '
            f'| {_mean(of_sampler, "memory_mb", ".0f")} |'
        )
    return '\n'.join(rows) + '\n'


def verdict(results: list[dict]) -> str:
    """Which differences in mAP the seeds bear out.

    A difference is within the spread of the seeds when the ranges, lowest to highest,
    of the two samplers overlap. Of two equal samplers with n seeds each, all of one are
    above all of the other in 2 of the (2n)! / (n!)^2 ways that scores can be ranked.
    """
    scores = {
        sampler: [result['mAP'] for result in of_sampler]
        for sampler, of_sampler in _by_sampler(results).items()
    }
    means = {sampler: statistics.mean(of_it) for sampler, of_it in scores.items()}
    best = max(means, key=means.get)
    lines = [f'Highest mAP: {_plain(best)}.']
    if min(map(len, scores.values())) == 1:
        return ' '.join(
            [
                *lines,
                'With one seed nothing is known of the spread: give more --seeds '
                'before you believe a difference.',
            ]
        )
    groups = {True: [], False: []}
    for sampler in sorted(means, key=means.get, reverse=True):
        if sampler != best:
            within = max(scores[sampler]) >= min(scores[best])
            behind = means[best] - means[sampler]
            groups[within].append(f'{_plain(sampler)} ({behind:.3f} behind)')
    for within, of_group in groups.items():
        if of_group:
            what = 'Within' if within else 'Behind it by more than'
            lines.append(f'{what} the spread of the seeds: {"; ".join(of_group)}.')
    if groups[False]:
        n = min(map(len, scores.values()))
        pairs = math.comb(2 * n, n) // 2
        lines.append(
            f'(By chance, with {n} seeds 1 in {pairs} pairs of equal samplers is told '
            'apart like this.)'
        )
    return '\n'.join(lines)


def draw(results: list[dict], curves: dict, path: Path) -> None:
    """The loss over all RoIs, mean of the seeds, and beside it each run's mAP."""
    samplers = list(_by_sampler(results))
    figure = Figure(figsize=(12, 1.8 + 0.4 * len(samplers)), layout='constrained')
    left, right = figure.subplots(1, 2)
    means = {}
    for row, sampler in enumerate(samplers):
        scores = [r['mAP'] for r in results if r['sampler'] == sampler]
        right.plot(scores, [row] * len(scores), 'o', color=f'C{row}', alpha=0.7)
        right.plot(statistics.mean(scores), row, '|', color=f'C{row}', markersize=22)
        of_sampler = [curve for (name, _), curve in curves.items() if name == sampler]
        steps = set.intersection(*map(set, of_sampler))
        means[_plain(sampler)] = {
            step: statistics.mean(curve[step] for curve in of_sampler)
            for step in sorted(steps)
        }
    draw_curves(left, means)
    left.get_legend().remove()  # the names beside the mAPs have the colours
    right.set_yticks(range(len(samplers)), means)
    for row, name in enumerate(right.get_yticklabels()):
        name.set_color(f'C{row}')
    right.set_ylim(len(samplers) - 0.5, -0.5)  # the first on top
    right.set_xlabel('mAP of each seed, and their mean')
    right.grid(alpha=0.3)
    save_figure(figure, path)


def _by_sampler(results: list[dict]) -> dict[str, list[dict]]:
    names = dict.fromkeys(result['sampler'] for result in results)
    return {name: [r for r in results if r['sampler'] == name] for name in names}


def _mean(results: list[dict], key: str, form: str) -> str:
    values = [result[key] for result in results]
    return '-' if None in values else format(statistics.mean(values), form)


def _plain(sampler: str) -> str:
    return LABELS[sampler].replace('*', '')
