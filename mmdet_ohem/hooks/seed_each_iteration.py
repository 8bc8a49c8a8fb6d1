"""A resumed run goes on with the numbers that the unbroken run would have drawn."""

import random

import numpy as np
import torch
from mmengine.hooks import Hook

from mmdet_ohem.registry import FUNCTIONS, HOOKS

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
            worker_init_fn=dict(type='mmdet_ohem.keep_seed'),
        )

    The seed is the Runner's, ``randomness.seed`` in a config.

    On a CPU the resumed run then repeats the unbroken one bit for bit. On a GPU it does
    so but for rounding: the gradients of RoI pooling and of RoIAlign are added up in
    whatever order the threads arrive.
    """

    def before_train_epoch(self, runner) -> None:
        # From here PyTorch draws the seeds of workers; without them data are loaded
        # in this process.
        seed = _seed(runner, runner.epoch, EPOCH)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        _replay_skipped_data(runner)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        torch.manual_seed(_seed(runner, runner.iter))


def _replay_skipped_data(runner) -> None:
    """Make onedl-mmengine load the data that a resumed run skips, as MMEngine does.

    Its loop of iterations moves the sampler alone forward, so the flips of the skipped
    images are not drawn, and those of all later images differ.
    """
    iterator = getattr(runner.train_loop, 'dataloader_iterator', None)
    if hasattr(iterator, 'skip_iter'):

        def load_and_drop(num_iters: int) -> None:
            for _ in range(num_iters):
                next(iterator)

        iterator.skip_iter = load_and_drop


def _seed(runner, *numbers: int) -> int:
    entropy = (runner.seed, runner.rank, *numbers)
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return int(seed >> np.uint64(1))


@FUNCTIONS.register_module()
def keep_seed(worker_id: int) -> None:
    """A ``worker_init_fn`` in place of MMEngine's, which would seed the workers of
    every epoch alike."""
