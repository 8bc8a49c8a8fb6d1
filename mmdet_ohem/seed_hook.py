"""A resumed run goes on with the numbers that the unbroken run would have drawn."""

import numpy as np
import torch
from mmengine.hooks import Hook

from mmdet_ohem.registry import HOOKS


@HOOKS.register_module()
class SeedEachIterationHook(Hook):
    """Seed PyTorch before every training iteration from (seed, rank, iteration).

    MMEngine's loop replays the data of the iterations that a resumed run skips, flips
    included, but dropout and the random sampler draw from PyTorch's generator, whose
    state no checkpoint holds. Seeded by iteration, it needs none.

    The seed is the Runner's, ``randomness.seed`` in a config.
    """

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        entropy = (runner.seed, runner.rank, runner.iter)
        seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed >> np.uint64(1)))
