"""Curves of several trainings in one picture, from what MMEngine logged."""

import json
import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmdet_ohem.whole_file import whole_file

LOSS_ALL_ROIS = 'mining/loss_all_rois'


def read_curve(work_dir: str | os.PathLike, key: str = LOSS_ALL_ROIS) -> dict:
    """What a training logged of one scalar, by iteration.

    A training that was resumed has a log for each start; where two logs hold the same
    iteration, the later start counts.

    Args:
        work_dir: holds <time of the start>/vis_data/scalars.json.
        key: of the scalar, such as 'loss' or 'mining/loss_all_rois'.

    Returns:
        {iteration: value}, rising.

    Raises:
        FileNotFoundError: no training was logged there.
        ValueError: the log is no log, or never mentions ``key``.
    """
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'{work_dir} holds no log of a training (*/vis_data/scalars.json): give '
            'the work dir of tools/train.py.'
        )
    curve, keys = {}, set()
    for log in logs:
        # The last line may be half written, by a run that goes on or was killed.
        whole = log.read_text().rpartition('\n')[0]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except json.JSONDecodeError as error:
            raise ValueError(f"{log} is not MMEngine's log: {error}.") from error
        # Validation is logged without a loss, and its step may be an epoch.
        lines = [line for line in lines if 'loss' in line]
        keys |= {key for line in lines for key in line}
        points = {line['step']: line[key] for line in lines if key in line}
        if lines:
            first = lines[0]['step']
            curve = {step: value for step, value in curve.items() if step < first}
        curve |= points
    if not curve:
        raise ValueError(
            f'The log of {work_dir} has no {key}; it has {", ".join(sorted(keys))}. '
            'mining/... is logged by custom_hooks = '
            "[dict(type='mmdet_ohem.MiningHook')]."
        )
    return curve


def plot_curves(
    curves: dict[str, dict], path: str | os.PathLike, ylabel: str = LOSS_ALL_ROIS
) -> None:
    """Draw curves of `read_curve`, by the name in the legend, and write a picture."""
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    draw_curves(figure.subplots(), curves, ylabel)
    save_figure(figure, path)


def draw_curves(
    axes: Axes, curves: dict[str, dict], ylabel: str = LOSS_ALL_ROIS
) -> None:
    """The same on axes of matplotlib; colours go round in the order of the curves."""
    for i, (name, curve) in enumerate(curves.items()):
        if curve:
            # A marker, for a curve of one point is no line.
            marker = 'o' if len(curve) == 1 else None
            axes.plot(
                list(curve), list(curve.values()), f'C{i}', label=name, marker=marker
            )
    axes.set_xlabel('iteration')
    axes.set_ylabel(
        'mean loss per RoI, over all RoIs' if ylabel == LOSS_ALL_ROIS else ylabel
    )
    axes.grid(alpha=0.3)
    axes.legend()


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a picture; the suffix says the format."""
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150)
