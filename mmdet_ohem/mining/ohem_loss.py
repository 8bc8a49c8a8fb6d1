"""Online hard example mining by the batch: for one-stage detectors and classifiers.

There are no RoIs to look at beforehand, nor boxes for NMS: the loss of every example is
there anyway, and the hardest alone are back-propagated.

K: examples of a call of the loss
M: examples that are mined, M <= K
C: classes, or other columns of an example
"""

from inspect import signature

import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.structures.bbox import cat_boxes, stack_boxes
from torch import Tensor, nn

from mmdet_ohem.registry import MODELS


def hardest(losses: Tensor, num: int | float, valid: Tensor | None = None) -> Tensor:
    """Choose the examples of highest loss.

    Args:
        losses: (K,) float.
        num: M, a number of 1 or more (fewer are chosen if fewer are there); or, as a
            float in (0, 1], a fraction of the valid examples, rounded, at least 1.
        valid: (K,) bool, which examples count. None: all.

    Returns:
        (M,) int64, indices in order of falling loss, equal losses by lower index.

    Raises:
        TypeError, ValueError: ``num`` is no such number.
    """
    _check_num(num)
    losses = losses.detach()
    if valid is not None:
        losses = losses.masked_fill(~valid, -torch.inf)
    count = len(losses) if valid is None else int(valid.sum())
    wanted = max(1, round(num * count)) if isinstance(num, float) else num
    # Not topk, whose choice among equal losses differs between devices.
    return losses.argsort(descending=True, stable=True)[: min(wanted, count)]


def _check_num(num: int | float) -> None:
    if isinstance(num, bool) or not isinstance(num, (int, float)):
        raise TypeError(
            'OHEMLoss.num must be an int, the number of examples that are mined, or a '
            f'float in (0, 1], a fraction, got {num!r} ({type(num).__name__}).'
        )
    if not 0 < num or (isinstance(num, float) and num > 1):
        raise ValueError(
            'OHEMLoss.num must be an int of 1 or more, or a fraction as a float in '
            f'(0, 1], got {num}.'
        )


@MODELS.register_module()
class OHEMLoss(nn.Module):
    """Back-propagate the hardest M of the K losses of a batch.

    It wraps a loss of MMDetection or MMPreTrain, and is called as that is:
    ``loss(pred, target, weight=None, avg_factor=None)``. A row of ``pred`` is one
    example and its loss the sum over its columns; where the loss has the shape of
    ``target`` (softmax over pixels) every element is one. Examples of weight 0, and
    class labels that are negative or the loss's ``ignore_index``, are never mined and
    count for no fraction.

    The batch is what one call brings. MMDetection's FCOSHead calls ``loss_cls``
    once for it; RetinaHead and other anchor heads call it for every level of the
    pyramid, so that M would be mined of each: use AllLevelsRetinaHead. SSDHead has no
    ``loss_cls`` and mines its background by itself. For a loss of torch.nn use
    `hardest` (docs/classifier.md).

    Args:
        loss: the loss module, or its config.
        num: M of a batch (one process's), or a fraction; see `hardest`.
        normalizer: what the sum of the mined losses is divided by. 'mined': M.
            'avg_factor': what the head passes, in MMDetection's one-stage heads the
            number of positives.
        use_sigmoid: must repeat that of ``loss``. MMDetection's heads read it here,
            to know whether background has a score of its own.

    Raises:
        TypeError, ValueError: when built, for a wrong key, or a loss that cannot be
            unreduced; or, when called, for one that stayed reduced all the same.
    """

    def __init__(
        self,
        loss: nn.Module | dict,
        num: int | float,
        normalizer: str = 'mined',
        use_sigmoid: bool = False,
    ) -> None:
        super().__init__()
        _check_num(num)
        if normalizer not in ('mined', 'avg_factor'):
            raise ValueError(
                "OHEMLoss.normalizer must be 'mined' or 'avg_factor', got "
                f'{normalizer!r}.'
            )
        self.loss = loss if isinstance(loss, nn.Module) else MODELS.build(loss)
        if 'reduction_override' not in signature(self.loss.forward).parameters:
            raise TypeError(
                f'OHEMLoss.loss, a {type(self.loss).__name__}, has no argument '
                "reduction_override, so it cannot be asked for every example's loss; "
                'wrap a loss of MMDetection or MMPreTrain, or use '
                'mmdet_ohem.mining.hardest on what a loss of torch.nn returns with '
                "reduction='none'."
            )
        if getattr(self.loss, 'use_sigmoid', False) != use_sigmoid:
            raise ValueError(
                f'OHEMLoss.use_sigmoid={use_sigmoid} but OHEMLoss.loss, a '
                f'{type(self.loss).__name__}, has use_sigmoid={not use_sigmoid}: set '
                'both alike, for heads read the outer one.'
            )
        self.num = num
        self.normalizer = normalizer
        self.use_sigmoid = use_sigmoid

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
        **kwargs,
    ) -> Tensor:
        """The loss of the batch.

        Args:
            pred: (K, C), or what ``loss`` takes.
            target: (K,), or what ``loss`` takes.
            weight: (K,) or (K, C).
            avg_factor: the divisor if ``normalizer`` is 'avg_factor'.
            reduction_override: 'none': what ``loss`` returns, nothing mined.
            kwargs: handed on to ``loss``.

        Returns:
            () float; 0 where no example is left.
        """
        if reduction_override not in (None, 'none'):
            raise ValueError(
                "OHEMLoss takes reduction_override None or 'none', got "
                f'{reduction_override!r}.'
            )
        if self.normalizer == 'avg_factor' and avg_factor is None:
            raise ValueError(
                "OHEMLoss.normalizer is 'avg_factor', but the head passes none; set "
                "it to 'mined'."
            )
        losses = self.loss(pred, target, weight, reduction_override='none', **kwargs)
        if reduction_override == 'none':
            return losses
        labels = _class_labels(pred, target)
        losses = self._per_example(losses, len(pred), labels)
        valid = self._valid(losses, weight, labels, kwargs.get('ignore_index'))
        mined = hardest(losses, self.num, valid)
        return weight_reduce_loss(
            losses[mined],
            avg_factor=len(mined) if self.normalizer == 'mined' else avg_factor,
        )

    def _per_example(self, losses: Tensor, rows: int, labels: Tensor | None) -> Tensor:
        """(K,) from what the loss returned."""
        shape = getattr(losses, 'shape', ())  # the seesaw loss returns a dict
        if labels is not None and shape == labels.shape:
            return losses.flatten()
        if len(shape) == 0 or len(losses) != rows:
            raise ValueError(
                f'OHEMLoss.loss, a {type(self.loss).__name__}, returned '
                f'{type(losses).__name__} {tuple(shape)} for {rows} examples with '
                "reduction_override='none', which cannot be told apart by example: "
                'wrap a loss that honours it.'
            )
        return losses.flatten(1).sum(1) if len(shape) > 1 else losses

    def _valid(
        self,
        losses: Tensor,
        weight: Tensor | None,
        labels: Tensor | None,
        ignore_index: int | None,
    ) -> Tensor:
        """(K,) bool, which examples count."""
        valid = torch.ones_like(losses, dtype=torch.bool)
        if weight is not None:
            # Not -1, which reshape cannot infer where there is no example.
            columns = weight.numel() // max(len(losses), 1)
            valid &= (weight != 0).reshape(len(losses), columns).any(dim=1)
        if labels is not None and labels.numel() == len(losses):
            if ignore_index is None:
                ignore_index = getattr(self.loss, 'ignore_index', None)
            valid &= labels.flatten() >= 0
            if ignore_index is not None:
                valid &= labels.flatten() != ignore_index
        return valid


def _class_labels(pred: Tensor, target: Tensor) -> Tensor | None:
    """The target where it is a class label for every example; not one-hot rows, box
    targets, or the pairs of the quality focal loss."""
    if not isinstance(target, Tensor) or target.is_floating_point():
        return None
    return target if target.dim() in (1, pred.dim() - 1) else None


@MODELS.register_module()
class AllLevelsRetinaHead(RetinaHead):
    """RetinaHead that calls its losses once for the anchors of all levels.

    MMDetection's calls them level by level, where OHEMLoss would mine M anchors of
    each. With a loss that mines nothing both heads compute the same.
    """

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: list,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: list | None = None,
    ) -> dict[str, Tensor]:
        """As AnchorHead.loss_by_feat, with one number for each loss.

        Args:
            cls_scores: of each level, (images, anchors * C, H, W).
            bbox_preds: of each level, (images, anchors * 4, H, W).
            batch_gt_instances: of each image.
            batch_img_metas: of each image.
            batch_gt_instances_ignore: of each image.
        """
        anchors, valid_flags = self.get_anchors(
            [scores.shape[-2:] for scores in cls_scores],
            batch_img_metas,
            device=cls_scores[0].device,
        )
        anchors_of_all = stack_boxes([cat_boxes(levels) for levels in anchors])
        *targets, avg_factor = self.get_targets(
            anchors,
            valid_flags,
            batch_gt_instances,
            batch_img_metas,
            batch_gt_instances_ignore=batch_gt_instances_ignore,
        )
        loss_cls, loss_bbox = self.loss_by_feat_single(
            _as_one_level(cls_scores),
            _as_one_level(bbox_preds),
            anchors_of_all,
            *(torch.cat(levels, dim=1) for levels in targets),
            avg_factor=avg_factor,
        )
        return dict(loss_cls=loss_cls, loss_bbox=loss_bbox)


def _as_one_level(maps: list[Tensor]) -> Tensor:
    """Maps (N, C, H, W) of several levels as one of a single column (N, C, all, 1)."""
    return torch.cat([one.flatten(2) for one in maps], dim=2).unsqueeze(3)
