"""A hook that writes into a training's log what is mined."""

import math
from collections import deque

import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from mmdet_ohem.hooks.watching import WatchingHook, roi_head_of
from mmdet_ohem.mining import Mining, OHEMSampler, samplers_of
from mmdet_ohem.registry import HOOKS

# The scalars: name, and the two sums of `_sums` whose quotient it is.
SCALARS = {
    'loss_all_rois': ('loss', 'rois'),
    'loss_sampled_rois': ('sampled_loss', 'sampled'),
    'foreground_fraction': ('foreground', 'sampled'),
    'only_background_fraction': ('only_background', 'images'),
    'dropped_by_nms': ('dropped', 'mined_images'),
    'loss_at_cut': ('cut', 'mined_images'),
}

SUMS = sorted({name for pair in SCALARS.values() for name in pair})


@HOOKS.register_module()
class MiningHook(WatchingHook):
    """Log the mean loss per RoI over all RoIs, the same measure for every sampler
    (Figure 2 of the paper), and what the sampler made of them.

    Text log, JSON log, TensorBoard and every other backend get, under ``mining/``:

    - ``loss_all_rois``: mean over all RoIs, see `mmdet_ohem.mining.watched`.
    - ``loss_sampled_rois``: mean over those that are trained on.
    - ``foreground_fraction``: share of foreground among these.
    - ``only_background_fraction``: share of images that gave nothing but background.
    - ``dropped_by_nms``: RoIs of an image that were harder than the last one mined, yet
      duplicates; ``loss_at_cut``: the loss of that last one. Of OHEMSampler alone, for
      other samplers rank nothing.

    A cascade has them for each stage: ``mining/s0.loss_all_rois`` and so on. One
    iteration in ``interval`` is read, and the scalars are means over those that were
    read among the last ``log_processor.window_size`` iterations, of the images of the
    first process. A resumed training goes on with those before it.

    Every sampler is read at the same iterations, so the curves of two samplers are
    means over as many images, with the same seed over the same images. OHEMSampler has
    the losses of every iteration at hand; a mean over all of them would be smooth
    beside the curve of a sampler that cannot be read so often: reading any other
    sampler takes a read-only pass over all RoIs, about half an iteration (the paper's
    Table 2), so 10 make it one twentieth and 50 one hundredth of the time. Training
    goes on bit for bit as without the hook.

    Args:
        interval: iterations from one reading to the next; the logger's interval should
            be a multiple of it.
    """

    def __init__(self, interval: int = 10) -> None:
        super().__init__(interval)
        self._recent: deque[Tensor] = deque()

    def before_train(self, runner) -> None:
        samplers = samplers_of(roi_head_of(runner.model, type(self).__name__))
        self._nums = [
            sampler.num if isinstance(sampler, OHEMSampler) else None
            for sampler in samplers
        ]
        num_readings = math.ceil(runner.log_processor.window_size / self.interval)
        self._recent = deque(self._recent, maxlen=num_readings)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint['mining_recent'] = [sums.cpu() for sums in self._recent]

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:  # not for load_from, weights of another training
            device = next(runner.model.parameters()).device
            recent = checkpoint.get('mining_recent', [])
            self._recent = deque(sums.to(device) for sums in recent)

    def show(self, runner, rankings: list[list[Mining]], data_batch) -> None:
        # A cascade may end before a stage has seen an image.
        device = next(runner.model.parameters()).device
        nothing = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        sums = [
            sum((_sums(mining, num) for mining in images), nothing)
            for images, num in zip(rankings, self._nums, strict=True)
        ]
        self._recent.append(torch.stack(sums))
        # The only wait for the GPU.
        totals = torch.stack(list(self._recent)).sum(dim=0).tolist()
        for stage, values in enumerate(totals):
            prefix = f's{stage}.' if len(totals) > 1 else ''
            self._log(runner, prefix, dict(zip(SUMS, values, strict=True)))

    def _log(self, runner, prefix: str, sums: dict[str, float]) -> None:
        for name, (total, count) in SCALARS.items():
            if sums[count] > 0:
                # A history of one value: the log processor would average over the
                # last 50 updates once more, because of the word loss in the name.
                key = f'train/mining/{prefix}{name}'
                runner.message_hub.log_scalars[key] = HistoryBuffer(
                    [sums[total] / sums[count]], [1]
                )


def _sums(mining: Mining, num: int | None) -> Tensor:
    """What an image adds to the means.

    Args:
        num: of the OHEMSampler that mined; None for another sampler.

    Returns:
        (len(SUMS),) float64, on the device of the losses.
    """
    losses, chosen = mining.losses.double(), mining.mined
    is_foreground = chosen < len(mining.candidates.pos_inds)
    sums = dict.fromkeys(SUMS, 0)
    sums.update(
        images=1,
        rois=len(losses),
        loss=losses.sum(),
        sampled=len(chosen),
        sampled_loss=losses[chosen].sum(),
        foreground=is_foreground.sum(),
    )
    if len(chosen) > 0:
        sums['only_background'] = ~is_foreground.any()
    if num is not None and len(chosen) > 0:
        cut = losses[chosen][-1]
        visited = len(losses)
        if len(chosen) == num:
            # The visit, by falling loss and then by index, ends with the last mined.
            index = torch.arange(len(losses), device=losses.device)
            earlier = (losses > cut) | ((losses == cut) & (index <= chosen[-1]))
            visited = earlier.sum()
        sums.update(mined_images=1, cut=cut, dropped=visited - len(chosen))
    # Numbers are filled in on the device: an assignment would wait to copy each.
    values = (sums[name] for name in SUMS)
    return torch.stack(
        [
            value.double() if isinstance(value, Tensor) else losses.new_full((), value)
            for value in values
        ]
    )
