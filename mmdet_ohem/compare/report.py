"""What a comparison of samplers says: a table, a verdict, and curves."""

import json
import math
import os
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from mmdet_ohem.compare.config_changes import LABELS
from mmdet_ohem.compare.verdict import verdict
from mmdet_ohem.visualization import draw_curves, save_figure
from mmdet_ohem.whole_file import whole_file

# Heads of the columns that a comparison with background has.
FALSE_POSITIVES = 'false positives per empty image at recall '
FALSE_ALARMS = 'empty images with a false alarm at score '


def write_report(results: list[dict], curves: dict, folder: str | os.PathLike) -> None:
    """Write table.md, results.json and curves.png.

    Args:
        results: of `compare`.
        curves: {(sampler, seed): {iteration: loss over all RoIs}}; empty: no line.
        folder: where to.
    """
    folder = Path(folder)
    scores = {
        _plain(sampler): [result['mAP'] for result in of_sampler]
        for sampler, of_sampler in _by_sampler(results).items()
    }
    save_figure(draw(results, curves), folder / 'curves.png')
    for name, text in (
        ('results.json', json.dumps(results, indent=2)),
        ('table.md', f'{table(results)}\n{verdict(scores)}\n'),
    ):
        with whole_file(folder / name) as partial:
            partial.write_text(text)


def table(results: list[dict]) -> str:
    """A Markdown table: means of the seeds, one row per sampler."""
    more = [
        name
        for name in results[0]
        if name in ('AP50', 'AP75') or name.startswith('background/')
    ]
    heads = [
        name.replace('background/fp_per_image@recall', FALSE_POSITIVES).replace(
            'background/false_alarms@', FALSE_ALARMS
        )
        for name in more
    ]
    has_rates = 'lr' in results[0]
    rows = [
        f'| sampler |{" lr |" if has_rates else ""} seeds | mAP '
        '| lowest to highest | loss over all RoIs '
        '| s / iteration (runs at a time) | memory, MB |'
        + ''.join(f' {head} |' for head in heads),
        '|---|---|---|---|---|---|---|' + '---|' * (len(heads) + has_rates),
    ]
    for sampler, of_sampler in _by_sampler(results).items():
        scores = [result['mAP'] for result in of_sampler]
        rate = f' {of_sampler[0]["lr"]:g} |' if has_rates else ''
        seconds = statistics.median(r['seconds_per_iteration'] for r in of_sampler)
        rows.append(
            f'| {LABELS[sampler]} |{rate} {len(scores)} '
            f'| {statistics.mean(scores):.3f} '
            f'| {min(scores):.3f} to {max(scores):.3f} '
            f'| {_mean(of_sampler, "loss_all_rois", ".3f")} '
            f'| {seconds:.2f} ({_runs_at_a_time(of_sampler)}) '
            f'| {_mean(of_sampler, "memory_mb", ".0f")} |'
            + ''.join(f' {_mean(of_sampler, name, ".3f")} |' for name in more)
        )
    return '\n'.join(rows) + '\n'


def draw(results: list[dict], curves: dict) -> Figure:
    """The loss over all RoIs, mean of the seeds, and beside it each run's mAP."""
    samplers = _by_sampler(results)
    # The label of the losses needs the height even where there are few samplers.
    height = max(3.5, 1.8 + 0.4 * len(samplers))
    figure = Figure(figsize=(12, height), layout='constrained')
    left, right = figure.subplots(1, 2)
    means = {}
    for row, (sampler, of_sampler) in enumerate(samplers.items()):
        scores = [result['mAP'] for result in of_sampler]
        right.plot(scores, [row] * len(scores), 'o', color=f'C{row}', alpha=0.7)
        right.plot(statistics.mean(scores), row, '|', color=f'C{row}', markersize=22)
        of_seeds = [curves[sampler, result['seed']] for result in of_sampler]
        steps = set.intersection(*map(set, of_seeds))
        means[_plain(sampler)] = {
            step: statistics.mean(curve[step] for curve in of_seeds)
            for step in sorted(steps)
        }
    draw_curves(left, means)  # the names beside the mAPs have the colours
    right.set_yticks(range(len(samplers)), means)
    for row, name in enumerate(right.get_yticklabels()):
        name.set_color(f'C{row}')
    right.set_ylim(len(samplers) - 0.5, -0.5)  # the first on top
    right.set_xlabel('mAP of each seed, and their mean')
    right.grid(alpha=0.3)
    return figure


def _by_sampler(results: list[dict]) -> dict[str, list[dict]]:
    names = dict.fromkeys(result['sampler'] for result in results)
    return {name: [r for r in results if r['sampler'] == name] for name in names}


def _runs_at_a_time(results: list[dict]) -> str:
    nums = {result['runs_at_a_time'] for result in results}
    return str(*nums) if len(nums) == 1 else f'{min(nums)} to {max(nums)}'


def _mean(results: list[dict], key: str, form: str) -> str:
    values = [result.get(key) for result in results]
    if None in values:
        return '-'
    mean = statistics.mean(values)
    return 'not reached' if math.isnan(mean) else format(mean, form)


def _plain(sampler: str) -> str:
    return LABELS[sampler].replace('*', '')
