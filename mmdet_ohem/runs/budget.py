"""How long a training lasts, and what moves along when it is shortened."""

import math
from pathlib import Path

from mmengine.config import Config

from mmdet_ohem.config import as_list

# Keys of MMEngine's schedulers that count iterations or epochs.
SCHEDULE_KEYS = {'begin', 'end', 'milestones', 'step_size', 'T_max', 'total_steps'}


def budget_unit(config: Config) -> str:
    """'max_iters' or 'max_epochs', whichever ``train_cfg`` counts in.

    Raises:
        ValueError: it has neither.
    """
    for unit in ('max_iters', 'max_epochs'):
        if unit in (config.get('train_cfg') or {}):
            return unit
    name = Path(config.filename).name if config.filename else 'The config'
    raise ValueError(
        f'{name}: train_cfg has neither max_iters nor max_epochs, so nobody knows how '
        'long to train.'
    )


def set_budget(config: Config, budget: int) -> None:
    """Train for so many iterations, or epochs where a config counts those, in place.

    Steps of the learning rate move in proportion. A warm-up by iterations stays, in a
    config of epochs.

    Raises:
        ValueError: see `budget_unit`.
    """
    unit = budget_unit(config)
    scale = budget / config.train_cfg[unit]
    config.train_cfg[unit] = budget
    schedulers = []
    for scheduler in as_list(config.get('param_scheduler') or []):
        if scheduler.get('by_epoch', True) == (unit == 'max_epochs'):
            for key in SCHEDULE_KEYS & scheduler.keys():
                scheduler[key] = _scaled(scheduler[key], scale)
            if scheduler.get('end', math.inf) - scheduler.get('begin', 0) < 2:
                continue  # MMEngine wants two steps of what changes gradually
        schedulers.append(scheduler)
    config.param_scheduler = schedulers


def _scaled(steps, scale: float):
    if isinstance(steps, (list, tuple)):
        return [_scaled(step, scale) for step in steps]
    is_step = isinstance(steps, int) and steps > 0  # not infinity
    return max(1, round(steps * scale)) if is_step else steps
