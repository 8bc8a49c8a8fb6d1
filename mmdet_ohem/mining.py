"""Online hard example mining: tensors in, indices out.

The algorithm of Shrivastava, Gupta and Girshick, CVPR 2016, in the paper's order:
a read-only forward pass over all RoIs of an image, the loss of each, NMS with the
loss as the score, and the hardest few (sections 4.1 and 4.2).

Shapes:
    R: RoIs of one image that take part (every proposal and every ground-truth box)
    P: the foreground RoIs among them, P <= R
    K: RoIs that are mined, K <= num
    N: boxes of a block, S: survivors of NMS so far
"""

from contextlib import contextmanager

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd


def select_hard_rois(
    losses: Tensor,
    boxes: Tensor,
    num: int,
    nms_iou: float | None = 0.7,
    labels: Tensor | None = None,
) -> Tensor:
    """Choose the hardest RoIs of an image after NMS with the loss as the score.

    RoIs are visited in order of falling loss, equal losses by lower index. A RoI is
    dropped when its IoU with one that is already chosen lies strictly above
    ``nms_iou``; the visit ends when ``num`` are chosen. The choice is the same on
    every device: IoU is taken in float32, one rounding per operation.

    Args:
        losses: (R,) float, any precision.
        boxes: (R, 4) float, x1, y1, x2, y2 in pixels, width x2 - x1. The IoU with a
            box of no area is 0.
        num: how many to choose at most, B/N in the paper (128/2), 1 or more.
        nms_iou: 0.7 in the paper (section 4.1). None: no NMS.
        labels: (R,) or None. If given, RoIs suppress only RoIs of their own label, as
            in the authors' release, where background is one label.

    Returns:
        (K,) int64, indices in order of falling loss; K < num if fewer survive.

    Raises:
        ValueError: a loss or a coordinate is NaN or infinite, shapes do not fit, or
            ``num`` or ``nms_iou`` is out of range.
    """
    check_num(num)
    check_nms_iou(nms_iou)
    num_rois = len(losses)
    if losses.shape != (num_rois,) or boxes.shape != (num_rois, 4):
        raise ValueError(
            'select_hard_rois takes losses (R,) and boxes (R, 4), got '
            f'{tuple(losses.shape)} and {tuple(boxes.shape)}.'
        )
    if labels is not None and labels.shape != (num_rois,):
        raise ValueError(
            f'labels must be (R,) = ({num_rois},) like losses, got '
            f'{tuple(labels.shape)}.'
        )
    losses, boxes = losses.detach(), boxes.detach().float()
    finite = losses.isfinite() & boxes.isfinite().all(dim=1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f'{int((~finite).sum())} of {num_rois} RoIs have a NaN or infinite loss or '
            f'coordinate, the first is RoI {first} with loss {losses[first].item()} '
            f'and box {boxes[first].tolist()}.'
        )
    order = losses.argsort(descending=True, stable=True)
    if nms_iou is None:
        return order[:num]
    return order[_nms_sorted(boxes[order], num, nms_iou, take(labels, order))]


def _nms_sorted(
    boxes: Tensor, num: int, nms_iou: float, labels: Tensor | None
) -> Tensor:
    """Greedy NMS of boxes (R, 4) that are sorted by falling score, up to ``num``.

    mmcv's and torchvision's NMS keep no order among equal scores, and their CPU and
    CUDA kernels round the IoU differently at the threshold. They also work through all
    R, where mining needs the first ``num`` survivors: going block by block, the work
    and the memory hardly grow with R.

    Returns:
        (K,) int64 on the device of ``boxes``, rising.
    """
    # About half of Selective Search's RoIs survive at 0.7: one block mostly is all.
    block_size = max(4 * num, 256)
    kept: list[int] = []
    for start in range(0, len(boxes), block_size):
        block = slice(start, start + block_size)
        block_boxes, block_labels = boxes[block], take(labels, block)
        # One copy to the host for a block: the greedy walk is sequential by nature.
        overlapping = (
            overlaps(block_boxes, block_labels, block_boxes, block_labels, nms_iou)
            .cpu()
            .numpy()
        )
        dropped = (
            overlaps(
                boxes[kept], take(labels, kept), block_boxes, block_labels, nms_iou
            )
            .any(dim=0)
            .cpu()
            .numpy()
        )
        for i in range(len(block_boxes)):
            if dropped[i]:
                continue
            kept.append(start + i)
            if len(kept) == num:
                return torch.tensor(kept, device=boxes.device)
            dropped |= overlapping[i]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def overlaps(
    boxes: Tensor,
    labels: Tensor | None,
    others: Tensor,
    other_labels: Tensor | None,
    nms_iou: float,
) -> Tensor:
    """Which of (N, 4) others a box of (S, 4) suppresses: (S, N) bool."""
    # The smallest normal number as eps: 0 / 0 becomes 0 and no IoU changes, however
    # small the boxes (MMDetection's own 1e-6 spoils boxes in relative coordinates).
    iou = bbox_overlaps(boxes, others, eps=torch.finfo(boxes.dtype).tiny)
    suppressed = iou > nms_iou
    if labels is None:
        return suppressed
    return suppressed & (labels[:, None] == other_labels[None, :])


def take(labels: Tensor | None, index) -> Tensor | None:
    """Some of the labels, where there are any."""
    return None if labels is None else labels[index]


def check_num(num: int) -> None:
    """Refuse a ``num`` that is no whole number of 1 or more."""
    if isinstance(num, bool) or not isinstance(num, int):
        raise TypeError(
            'num, the number of RoIs that are mined per image, must be an int, got '
            f'{num!r} ({type(num).__name__}).'
        )
    if num <= 0:
        raise ValueError(
            f'num, the number of RoIs that are mined per image, must be 1 or more, got '
            f'{num}.'
        )


def check_nms_iou(nms_iou: float | None) -> None:
    """Refuse an ``nms_iou`` that is neither None nor in [0, 1]."""
    if nms_iou is None:
        return
    if isinstance(nms_iou, bool) or not isinstance(nms_iou, (int, float)):
        raise TypeError(
            'nms_iou must be a number in [0, 1], or None for no NMS, got '
            f'{nms_iou!r} ({type(nms_iou).__name__}).'
        )
    if not 0 <= nms_iou <= 1:
        raise ValueError(
            f'nms_iou must lie in [0, 1], or be None for no NMS, got {nms_iou}.'
        )


def loss_per_roi(losses: dict[str, Tensor], num_rois: int, num_pos: int) -> Tensor:
    """Add up the unreduced losses of a bbox head for each RoI.

    The paper ranks by the classification and the localisation loss together
    (section 4.1). What a head returns with ``reduction_override='none'`` differs from
    loss to loss; every key with 'loss' in it counts, by its number of rows:

    - R rows (softmax, and box losses of all RoIs): summed per row.
    - k * R rows (SABL's buckets): k rows belong to a RoI.
    - P rows (box losses of the foreground): they go to the P positives, which come
      first among the RoIs, in order.
    - no dimension: heads return a bare 0 where there is no positive. Any other is a
      loss that stayed reduced (EQLv2); it cannot rank and is refused.

    Args:
        losses: what ``bbox_head.loss(..., reduction_override='none')`` returned.
        num_rois: R.
        num_pos: P.

    Returns:
        (R,) float32.

    Raises:
        ValueError: a loss has none of these shapes; the message names its key.
    """
    total = None
    for key, value in losses.items():
        if 'loss' not in key:
            continue
        if not isinstance(value, Tensor):
            raise ValueError(
                f'roi_head.bbox_head.{_config_key(key)} returned {key!r} as '
                f'{type(value).__name__}, where hard example mining ranks by a tensor.'
            )
        if total is None:
            total = value.new_zeros(num_rois, dtype=torch.float32)
        rows = 0 if value.dim() == 0 else len(value)
        if rows == num_pos == 0 and not value.any():
            continue
        if 0 < rows == num_pos < num_rois:
            total[:num_pos] += value.float().reshape(num_pos, -1).sum(dim=1)
        elif rows > 0 and rows % num_rois == 0:
            total += value.float().reshape(num_rois, -1).sum(dim=1)
        else:
            raise ValueError(
                f'roi_head.bbox_head.{_config_key(key)} has shape '
                f'{tuple(value.shape)} for {num_rois} RoIs, {num_pos} of them '
                'foreground: it cannot be told apart by RoI, so hard example mining '
                "cannot rank by it; use a loss that honours reduction_override='none'."
            )
    if total is None:
        raise ValueError(
            'roi_head.bbox_head returned no loss to rank RoIs by, only '
            f'{sorted(losses)}.'
        )
    return total


def _config_key(loss_name: str) -> str:
    """Seesaw, one loss in a config, returns loss_cls_objectness and _classes."""
    return 'loss_cls' if loss_name.startswith('loss_cls') else loss_name


@contextmanager
def read_only(roi_network: nn.Module, dropout: bool = False):
    """Run the RoI network as the paper's read-only copy (section 4.2): shared weights,
    no gradient, nothing left behind.

    Inside, every layer is in eval mode: normalisation uses its running statistics and
    dropout is off, so that the ranking draws no random number. Afterwards every mode
    flag and every buffer (the seesaw loss counts in its own) is what it was.

    Args:
        roi_network: what is run inside, e.g. a RoI head.
        dropout: leave dropout layers as they are, as in the authors' release.
    """
    layers = list(roi_network.modules())
    modes = [(layer, layer.training) for layer in layers]
    buffers = [
        (layer, name, buffer, buffer.clone(), buffer._version)
        for layer in layers
        for name, buffer in layer._buffers.items()
        if buffer is not None
    ]
    try:
        for layer in layers:
            # The flag alone: train() of some modules does more, such as freezing.
            if not (dropout and isinstance(layer, _DropoutNd)):
                layer.training = False
        with torch.no_grad():
            yield
    finally:
        for layer, mode in modes:
            layer.training = mode
        for layer, name, buffer, value, version in buffers:
            layer._buffers[name] = buffer  # it may have been bound anew
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)
        # Up to 2025 PyTorch's autocast keeps the half-precision weights of this pass,
        # which have no gradient, and the training pass after it trains nothing
        # (pytorch issue 65766).
        torch.clear_autocast_cache()
