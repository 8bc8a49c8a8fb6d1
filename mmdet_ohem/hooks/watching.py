"""What the hooks that look on at mining have in common."""

from contextlib import ExitStack

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from mmdet_ohem.mining import Mining, watched, why_unfit


class WatchingHook(Hook):
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

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.every_n_train_iters(runner, self.interval):
            roi_head = roi_head_of(runner.model, type(self).__name__)
            self._rankings = self._watching.enter_context(watched(roi_head))

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        if self._rankings is not None:
            self._watching.close()
            rankings, self._rankings = self._rankings, None
            self.show(runner, rankings, data_batch)


def roi_head_of(model: nn.Module, hook: str) -> nn.Module:
    detector = model.module if is_model_wrapper(model) else model
    roi_head = getattr(detector, 'roi_head', None)
    if not hasattr(roi_head, 'bbox_sampler'):
        raise TypeError(
            f'custom_hooks: {hook} shows which RoIs are sampled, but '
            f'{type(detector).__name__} has no RoI head with a sampler; remove the '
            'hook from this config.'
        )
    if reason := why_unfit(roi_head):
        raise TypeError(
            f'custom_hooks: {hook} ranks RoIs by loss, but {type(roi_head).__name__} '
            f'{reason}; remove the hook from this config.'
        )
    return roi_head
