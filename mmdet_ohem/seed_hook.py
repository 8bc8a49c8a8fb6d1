"""A resumed run goes on with the numbers that the unbroken run would have drawn."""

import random

import numpy as np
import torch
from mmengine.hooks import Hook

from mmdet_ohem.registry import HOOKS

EPOCH = 1  # to tell an epoch's seed from an iteration's


@HOOKS.register_module()
class SeedEachIterationHook(Hook):
    """Seed PyTorch before every training iteration from (seed, rank, iteration).

    MMEngine's loop replays the data of the iterations that a resumed run skips, flips
    included, but dropout and the random sampler draw from PyTorch's generator, whose
    state no checkpoint holds. Seeded by iteration, it needs none.

    A loop of epochs replays nothing, so workers must start anew with each epoch and
    take the seed that PyTorch gives them then::

        train_dataloader = dict(
            persistent_workers=False,
            worker_init_fn=dict(type='mmdet_ohem.seed_hook.keep_seed'),
        )

    The seed is the Runner's, ``randomness.seed`` in a config.
    """

    def before_train_epoch(self, runner) -> None:
        # From here PyTorch draws the seeds of workers; without them data are loaded
        # in this process.
        seed = _seed(runner, runner.epoch, EPOCH)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        torch.manual_seed(_seed(runner, runner.iter))


def _seed(runner, *numbers: int) -> int:
    entropy = (runner.seed, runner.rank, *numbers)
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return int(seed >> np.uint64(1))


def keep_seed(worker_id: int) -> None:
    """A ``worker_init_fn`` in place of MMEngine's, which would seed the workers of
    every epoch alike."""
