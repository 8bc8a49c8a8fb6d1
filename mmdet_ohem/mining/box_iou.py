"""IoU of horizontal and of rotated boxes.

mmcv's `box_iou_rotated` is not used: that of version 2.1 loses corners where sides of
two boxes lie on one line. Of boxes that coincide but for the rounding of their
angles it finds an IoU that is wrong by more than 0.01 for about one pair in eight,
often 0, so that NMS would keep both.

Shapes:
    S, N: boxes on either side
    M: pairs of boxes
"""

import torch
from torch import Tensor

# Pairs at a time: 2 MB for each number of a corner.
PAIRS_AT_A_TIME = 2**16
# Corners of a box in its own frame, in turn, in halves of its width and height.
CORNERS_X = (-1.0, 1.0, 1.0, -1.0)
CORNERS_Y = (-1.0, -1.0, 1.0, 1.0)


def box_iou(boxes: Tensor, others: Tensor, least: float = 0.0) -> Tensor:
    """IoU of each of some boxes with each of others.

    Args:
        boxes: (S, 4) x1, y1, x2, y2, or (S, 5) cx, cy, w, h, angle in radians,
            clockwise where y points down, as MMRotate's RotatedBoxes. float32.
        others: (N, 4) or (N, 5), of the same kind.
        least: an IoU of rotated boxes that is surely not larger may come out as 0,
            which saves time.

    Returns:
        (S, N) float32. The IoU with a box without area is 0. That of rotated boxes is
        computed in double precision and rounded once.
    """
    if boxes.shape[1] == 5:
        return _rotated_iou(boxes, others, least)
    return _horizontal_iou(boxes, others)


def _horizontal_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (S, N) of boxes (S, 4) with others (N, 4), 0 with a box of no area.

    MMDetection's `bbox_overlaps` copies its eps from the host, and a GPU would wait.
    """
    near, far = boxes[:, None].split(2, dim=2)
    others_near, others_far = others.split(2, dim=1)
    sides = far.minimum(others_far) - near.maximum(others_near)
    width, height = sides.clamp(min=0).unbind(dim=2)
    intersection = width * height
    areas = (far - near).prod(dim=2), (others_far - others_near).prod(dim=1)
    union = areas[0] + areas[1] - intersection
    # The smallest normal number as the least union: 0 / 0 becomes 0, and no IoU changes
    # of boxes whose area is a normal float32 number (1.2e-38, sides of 1.1e-19 px).
    # MMDetection's 1e-6 spoils boxes in relative coordinates.
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def _rotated_iou(boxes: Tensor, others: Tensor, least: float) -> Tensor:
    boxes, others = boxes.double(), others.double()
    iou = boxes.new_zeros(len(boxes), len(others), dtype=torch.float32)
    pairs = _may_exceed(boxes, others, least).nonzero()
    for i, j in (part.unbind(dim=1) for part in pairs.split(PAIRS_AT_A_TIME)):
        first, second = boxes[i], others[j]
        common = _intersection(first, second)
        iou[i, j] = (common / (_area(first) + _area(second) - common)).float()
    return iou


def _area(boxes: Tensor) -> Tensor:
    return boxes[..., 2] * boxes[..., 3]


def _may_exceed(boxes: Tensor, others: Tensor, least: float) -> Tensor:
    """(S, N) bool: the circles around the two boxes meet, and the IoU that boxes of
    such areas can have at most is above ``least``; both boxes have an area."""
    x, y = (boxes[:, None, :2] - others[None, :, :2]).unbind(dim=-1)
    radii = boxes[:, 2:4].norm(dim=1)[:, None] + others[:, 2:4].norm(dim=1)[None, :]
    area, other_area = _area(boxes)[:, None], _area(others)[None, :]
    # A hair below `least`, for the areas are rounded.
    ratio = least * (1 - 1e-9)
    return (
        (4 * (x * x + y * y) < radii * radii)
        & (torch.minimum(area, other_area) > ratio * torch.maximum(area, other_area))
        & (boxes[:, 2:4] > 0).all(dim=1)[:, None]
        & (others[:, 2:4] > 0).all(dim=1)[None, :]
    )


def _intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """The common area (M,) of M pairs of boxes (M, 5), each with an area.

    Seen from the second box, whose sides are parallel to the axes there, the area is an
    integral along the sides of the first one (Green's theorem): of y, where y is cut
    off at the height of the second box, over those x that lie within its width.
    """
    x, y = (boxes - others)[:, :2].unbind(dim=1)
    cos, sin = others[:, 4].cos(), others[:, 4].sin()
    x, y = (cos * x + sin * y)[:, None], (cos * y - sin * x)[:, None]
    turn = boxes[:, 4:5] - others[:, 4:5]
    cos, sin = turn.cos(), turn.sin()
    u = boxes[:, 2:3] / 2 * boxes.new_tensor(CORNERS_X)
    v = boxes[:, 3:4] / 2 * boxes.new_tensor(CORNERS_Y)
    # (M, 4): where each side of the first box starts and how far it goes.
    x, y = x + cos * u - sin * v, y + sin * u + cos * v
    run, rise = x.roll(-1, dims=1) - x, y.roll(-1, dims=1) - y

    half_width, half_height = others[:, 2:3] / 2, others[:, 3:4] / 2
    start = x.maximum(-half_width).minimum(half_width)
    end = start.roll(-1, dims=1)
    # A side that is upright covers no x, and whatever its y is counts for nothing.
    slope = rise / torch.where(run == 0, 1.0, run)
    y_start, y_end = y + (start - x) * slope, y + (end - x) * slope
    low = y_start.maximum(-half_height).minimum(half_height)
    high = y_end.maximum(-half_height).minimum(half_height)
    # The mean of y, cut off, along a straight line from y_start to y_end. Of a line
    # that lies beyond the height as a whole nothing but the cut is left.
    mean = (low - y_start) * low + (y_end - high) * high
    mean = mean + (high - low) * (high + low) / 2
    crosses = low != high
    mean = torch.where(crosses, mean / torch.where(crosses, y_end - y_start, 1.0), low)
    return ((start - end) * mean).sum(dim=1).clamp(min=0)
