"""Curves of several trainings in one picture, from what MMEngine logged, and FROC
curves of a detector."""

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmdet_ohem.whole_file import whole_file

LOSS_ALL_ROIS = 'mining/loss_all_rois'
# False positives per image at the edges of a FROC picture, an octave beyond LUNA16's.
LEAST_RATE, MOST_RATE = 1 / 16, 16
# Classes whose lines have a colour and a name; more could not be told apart.
MOST_NAMES = 10


def read_log(work_dir: str | os.PathLike) -> list[list[dict]]:
    """What MMEngine logged of a training: for each start of it the entries.

    Args:
        work_dir: holds <time of the start>/vis_data/scalars.json.

    Raises:
        ValueError: such a file is no log.
    """
    starts = []
    for log in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        # The last line may be half written, by a run that goes on or was killed.
        whole = log.read_text().rpartition('\n')[0]
        try:
            starts.append([json.loads(line) for line in whole.splitlines()])
        except json.JSONDecodeError as error:
            raise ValueError(f"{log} is not MMEngine's log: {error}.") from error
    return starts


def read_curve(work_dir: str | os.PathLike, key: str = LOSS_ALL_ROIS) -> dict:
    """What a training logged of one scalar, by iteration.

    A training that was resumed has a log for each start; where two logs hold the same
    iteration, the later start counts.

    Args:
        work_dir: as `read_log` takes it.
        key: of the scalar, such as 'loss' or 'mining/loss_all_rois'.

    Returns:
        {iteration: value}, rising.

    Raises:
        FileNotFoundError: no training was logged there.
        ValueError: the log is no log, or never mentions ``key``.
    """
    starts = read_log(work_dir)
    if not starts:
        raise FileNotFoundError(
            f'{work_dir} holds no log of a training (*/vis_data/scalars.json): give '
            'the work dir of tools/train.py.'
        )
    curve, keys = {}, set()
    for start in starts:
        # Validation is logged without a loss, and its step may be an epoch.
        lines = [line for line in start if 'loss' in line]
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
    axes = figure.subplots()
    draw_curves(axes, curves, ylabel)
    axes.legend()
    save_figure(figure, path)


def draw_curves(
    axes: Axes, curves: dict[str, dict], ylabel: str = LOSS_ALL_ROIS
) -> None:
    """The same on axes of matplotlib, without the legend.

    Colours go round in the order of the curves.
    """
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


def plot_froc(
    whole: tuple[np.ndarray, np.ndarray],
    of_classes: dict[str, tuple[np.ndarray, np.ndarray]],
    path: str | os.PathLike,
    xlabel: str = 'false positives per image',
) -> None:
    """Draw sensitivity against false positives per image, on a logarithmic axis, and
    write a picture.

    A dot is where the detections end.

    Args:
        whole: (K,) false positives per image, rising from 0, and (K,) sensitivity of
            all classes; a black line.
        of_classes: the same of each class by its name. More than ten are grey lines
            without names.
    """
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    for i, (name, curve) in enumerate(of_classes.items()):
        if len(of_classes) > MOST_NAMES:
            style = dict(color='0.8', linewidth=1, label='' if i else 'each class')
        else:
            style = dict(color=f'C{i}', label=name)
        _draw_froc(axes, curve, style)
    style = dict(color='black', linewidth=2.5, label='all classes')
    _draw_froc(axes, whole, style)
    axes.set_xscale('log', base=2)
    axes.set_xlim(LEAST_RATE, MOST_RATE)
    axes.xaxis.set_major_formatter(lambda rate, _: str(Fraction(rate)))
    axes.set_ylim(0, 1.02)  # a line at 1 is not hidden by the frame
    axes.set_xlabel(xlabel)
    axes.set_ylabel('sensitivity')
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def _draw_froc(axes: Axes, curve: tuple[np.ndarray, np.ndarray], style: dict) -> None:
    """A line that is straight between the points where the axis is not logarithmic."""
    fp_per_image, sensitivity = curve
    last = min(max(fp_per_image[-1], LEAST_RATE), MOST_RATE)
    rates = np.geomspace(LEAST_RATE, last, 400)
    line = np.interp(rates, fp_per_image, sensitivity)
    marker = 'o' if last < MOST_RATE else None
    # Not clipped: a dot may lie on the frame.
    axes.plot(rates, line, marker=marker, markevery=[-1], clip_on=False, **style)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a picture; the suffix says the format."""
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150)
