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

import numpy as np
import torch
from torch import Tensor

from mmdet_ohem.mining.box_iou import box_iou


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
    every device: IoU is taken in float32, one rounding per operation; that of rotated
    boxes in double precision, rounded once to float32.

    Args:
        losses: (R,) float, any precision.
        boxes: (R, 4) float, x1, y1, x2, y2 in pixels, width x2 - x1; or (R, 5), rotated
            boxes cx, cy, w, h in pixels and an angle in radians, clockwise where y
            points down. The IoU with a box of no area is 0.
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
    if losses.shape != (num_rois,) or boxes.shape not in ((num_rois, 4), (num_rois, 5)):
        raise ValueError(
            'select_hard_rois takes losses (R,) and boxes (R, 4), or (R, 5) if they '
            f'are rotated, got {tuple(losses.shape)} and {tuple(boxes.shape)}.'
        )
    if labels is not None and labels.shape != (num_rois,):
        raise ValueError(
            f'labels must be (R,) = ({num_rois},) like losses, got '
            f'{tuple(labels.shape)}.'
        )
    losses, boxes = losses.detach(), boxes.detach().float()
    finite = torch.cat([losses[:, None], boxes], dim=1).isfinite().all(dim=1)
    order = losses.argsort(descending=True, stable=True)
    if nms_iou is None:
        chosen, all_finite = order[:num], bool(finite.all())
    else:
        kept, all_finite = _nms_sorted(
            boxes[order], num, nms_iou, take(labels, order), finite.all()
        )
        chosen = order[kept]
    if not all_finite:
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f'{int((~finite).sum())} of {num_rois} RoIs have a NaN or infinite loss or '
            f'coordinate, the first is RoI {first} with loss {losses[first].item()} '
            f'and box {boxes[first].tolist()}.'
        )
    return chosen


def _nms_sorted(
    boxes: Tensor,
    num: int,
    nms_iou: float,
    labels: Tensor | None,
    all_finite: Tensor,
) -> tuple[Tensor, bool]:
    """Greedy NMS of boxes (R, 4) or (R, 5) sorted by falling score, up to ``num``.

    mmcv's and torchvision's NMS keep no order among equal scores, and their CPU and
    CUDA kernels round the IoU differently at the threshold. They also work through all
    R, where mining needs the first ``num`` survivors: going block by block, the work
    and the memory hardly grow with R.

    Args:
        all_finite: () bool. It comes to the host with the first block, which spares a
            wait of its own.

    Returns:
        (K,) int64 on the device of ``boxes``, rising, and ``all_finite``. Where that
        is false, the indices mean nothing.
    """
    # About half of Selective Search's RoIs survive at 0.7: one block mostly is all.
    block_size = max(4 * num, 256)
    kept: list[int] = []
    is_finite = True
    for start in range(0, len(boxes), block_size):
        block = slice(start, start + block_size)
        rivals = [block, _on_device(kept, boxes.device)] if kept else [block]
        block_boxes, block_labels = boxes[block], take(labels, block)
        masks = [all_finite.expand(1, len(block_boxes))]
        masks += [
            overlaps(boxes[i], take(labels, i), block_boxes, block_labels, nms_iou)
            for i in rivals
        ]
        # One copy to the host for a block: the greedy walk is sequential by nature.
        masks = torch.cat(masks).cpu().numpy()
        is_finite = bool(masks[0].all())
        overlapping, by_earlier = np.split(masks[1:], [len(block_boxes)])
        dropped = by_earlier.any(axis=0)
        for i in range(len(block_boxes)):
            if dropped[i]:
                continue
            kept.append(start + i)
            if len(kept) == num:
                return _on_device(kept, boxes.device), is_finite
            dropped |= overlapping[i]
    return _on_device(kept, boxes.device), is_finite


def _on_device(indices: list[int], device: torch.device) -> Tensor:
    """(len(indices),) int64, without waiting for the device."""
    tensor = torch.tensor(indices, dtype=torch.int64)
    if device.type == 'cuda':
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def overlaps(
    boxes: Tensor,
    labels: Tensor | None,
    others: Tensor,
    other_labels: Tensor | None,
    nms_iou: float,
) -> Tensor:
    """Which of (N, 4) or (N, 5) others each of (S, 4) or (S, 5) boxes suppresses: (S,
    N) bool."""
    suppressed = box_iou(boxes, others, least=nms_iou) > nms_iou
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
