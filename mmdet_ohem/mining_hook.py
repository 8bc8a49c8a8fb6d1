"""Hooks that show in a training's log what is mined: as scalars, and as pictures."""

from collections import deque
from contextlib import ExitStack

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmdet_ohem.ohem_sampler import UNFIT_ROI_HEADS, Mining, OHEMSampler
from mmdet_ohem.pictures import draw_ranking
from mmdet_ohem.registry import HOOKS
from mmdet_ohem.watch import samplers_of, watched

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


class _WatchingHook(Hook):
    """Looks on at the sampling of some iterations of training."""

    def __init__(self, interval: int) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(
                f'custom_hooks: {type(self).__name__}.interval must be a whole number '
                f'of 1 or more, got {interval!r}.'
            )
        self.interval = interval
        self._watching = ExitStack()
        self._rankings: list[list[Mining]] | None = None

    def _watches(self, runner) -> bool:
        return self.every_n_train_iters(runner, self.interval)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self._watches(runner):
            roi_head = _roi_head(runner.model, type(self).__name__)
            self._rankings = self._watching.enter_context(watched(roi_head))

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        if self._rankings is not None:
            self._watching.close()
            rankings, self._rankings = self._rankings, None
            self._show(runner, rankings, data_batch)


@HOOKS.register_module()
class MiningHook(_WatchingHook):
    """Log the mean loss per RoI over all RoIs, the same measure for every sampler
    (Figure 2 of the paper), and what the sampler made of them.

    Text log, JSON log, TensorBoard and every other backend get, under ``mining/``:

    - ``loss_all_rois``: mean over all RoIs, see `mmdet_ohem.watch.watched`.
    - ``loss_sampled_rois``: mean over those that are trained on.
    - ``foreground_fraction``: share of foreground among these.
    - ``only_background_fraction``: share of images that gave nothing but background.
    - ``dropped_by_nms``: RoIs of an image that were harder than the last one mined, yet
      duplicates; ``loss_at_cut``: the loss of that last one. Of OHEMSampler alone, for
      other samplers rank nothing.

    A cascade has them for each stage: ``mining/s0.loss_all_rois`` and so on. Like the
    losses in the log, they are means over the last ``log_processor.window_size``
    iterations, of the images of the first process; a resumed training goes on with
    those before it.

    OHEMSampler has the losses at hand, so every iteration counts and the cost is
    nothing to speak of. With any other sampler a read-only pass over all RoIs is made
    every ``interval`` iterations; it takes about half as long as an iteration (the
    paper's Table 2), so 50 make it one hundredth. Training goes on bit for bit as
    without the hook.

    Args:
        interval: iterations between two updates of the scalars; the logger's interval
            should be a multiple of it.
    """

    def __init__(self, interval: int = 50) -> None:
        super().__init__(interval)
        self._recent: deque[Tensor] = deque()

    def before_train(self, runner) -> None:
        samplers = samplers_of(_roi_head(runner.model, type(self).__name__))
        self._nums = [
            sampler.num if isinstance(sampler, OHEMSampler) else None
            for sampler in samplers
        ]
        self._is_free = None not in self._nums
        step = 1 if self._is_free else self.interval
        window = max(1, runner.log_processor.window_size // step)
        self._recent = deque(self._recent, maxlen=window)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint['mining_recent'] = [sums.cpu() for sums in self._recent]

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:  # not for load_from, weights of another training
            device = next(runner.model.parameters()).device
            recent = checkpoint.get('mining_recent', [])
            self._recent = deque(sums.to(device) for sums in recent)

    def _watches(self, runner) -> bool:
        return self._is_free or super()._watches(runner)

    def _show(self, runner, rankings: list[list[Mining]], data_batch) -> None:
        # A cascade may end before a stage has seen an image.
        device = next(runner.model.parameters()).device
        nothing = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        sums = [
            sum((_sums(mining, num) for mining in images), nothing)
            for images, num in zip(rankings, self._nums, strict=True)
        ]
        self._recent.append(torch.stack(sums))
        if self.every_n_train_iters(runner, self.interval):
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


@HOOKS.register_module()
class MinedPicturesHook(_WatchingHook):
    """Show a training image with the RoIs that its sampler chose.

    As in `mmdet_ohem.pictures.draw_ranking`, through the Runner's visualizer, so that
    every backend of it gets the picture: the local one writes it to
    vis_data/vis_image/mined_*.png. Of a cascade the first stage is shown.

    Args:
        interval: iterations between two pictures.
    """

    def __init__(self, interval: int = 500) -> None:
        super().__init__(interval)

    def before_train(self, runner) -> None:
        _roi_head(runner.model, type(self).__name__)  # now, not after 500 iterations

    @master_only
    def _show(self, runner, rankings: list[list[Mining]], data_batch) -> None:
        if not rankings[0]:
            return
        image = data_batch['inputs'][0].permute(1, 2, 0).cpu().numpy()[..., ::-1]
        picture = draw_ranking(image, rankings[0][0])
        runner.visualizer.add_image('mined', picture, step=runner.iter + 1)


def _roi_head(model: nn.Module, hook: str) -> nn.Module:
    detector = model.module if is_model_wrapper(model) else model
    roi_head = getattr(detector, 'roi_head', None)
    if not hasattr(roi_head, 'bbox_sampler'):
        raise TypeError(
            f'custom_hooks: {hook} shows which RoIs are sampled, but '
            f'{type(detector).__name__} has no RoI head with a sampler; remove the '
            'hook from this config.'
        )
    for unfit, reason in UNFIT_ROI_HEADS.items():
        if isinstance(roi_head, unfit):
            raise TypeError(
                f'custom_hooks: {hook} ranks RoIs by loss, but '
                f'{type(roi_head).__name__} {reason}; remove the hook from this config.'
            )
    return roi_head


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
        cut = losses[chosen[-1]]
        visited = len(losses)
        if len(chosen) == num:
            # The visit, by falling loss and then by index, ends with the last mined.
            index = torch.arange(len(losses), device=losses.device)
            earlier = (losses > cut) | ((losses == cut) & (index <= chosen[-1]))
            visited = earlier.sum()
        sums.update(mined_images=1, cut=cut, dropped=visited - len(chosen))
    # Filled in on the device: no number comes to the host.
    values = losses.new_zeros(len(SUMS))
    for i, name in enumerate(SUMS):
        values[i] = sums[name]
    return values
