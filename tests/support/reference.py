"""Plain NumPy versions of what the package computes, and random boxes for it."""

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> np.float32:
    """IoU of two boxes (4,) float32; 0 where one has no area."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), np.float32(0))
    if width == 0 or height == 0:
        return np.float32(0)
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area_a + area_b - width * height)


def select_hard_rois(
    losses, boxes, num, nms_iou=0.7, labels=None, iou=iou
) -> list[int]:
    """The paper's section 4.1, one RoI after the other."""
    hardest_first = sorted(range(len(losses)), key=lambda i: (-losses[i], i))
    kept = []
    for i in hardest_first:
        if len(kept) == num:
            break
        rivals = [k for k in kept if labels is None or labels[k] == labels[i]]
        if nms_iou is None or all(iou(boxes[k], boxes[i]) <= nms_iou for k in rivals):
            kept.append(i)
    return kept


def random_boxes(rng, count, width, height):
    """Boxes (count, 4) of at least 8 px a side, inside the image."""
    corner = rng.uniform(0, 1, (count, 2)) * [width - 20, height - 20]
    sides = rng.uniform(8, 0.7 * min(width, height), (count, 2))
    far_corner = np.minimum(corner + sides, [width - 1, height - 1])
    return np.concatenate([corner, far_corner], axis=1).astype(np.float32)
