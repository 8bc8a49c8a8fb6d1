"""Where to write labels in a picture, so that they hide nothing.

Letters for shapes:
    N: labels, M: boxes that may not be hidden
"""

from functools import lru_cache

import numpy as np
from matplotlib.textpath import TextPath

# A label may cover this part of a box, such as a corner of a large one.
MAX_COVERED = 0.05
# How far from its box a label may be, in heights of a label.
MAX_STEPS = 8
PAD = 2  # px around a text


@lru_cache(maxsize=4096)
def text_size(text: str, font_px: float) -> tuple[float, float]:
    """Width and height in px of a label, in matplotlib's own font."""
    width = TextPath((0, 0), text, size=font_px).get_extents().x1
    return width + 2 * PAD, 1.2 * font_px + 2 * PAD


def place_labels(
    anchors: np.ndarray, sizes: np.ndarray, boxes: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, int]:
    """Find a place for each label, near its box.

    No label covers more than ``MAX_COVERED`` of any box or touches another label. What
    finds no such place goes to the right of the picture, in the order of the boxes from
    top to bottom.

    Args:
        anchors: (N, 4) the boxes of the labels, x1, y1, x2, y2 in px.
        sizes: (N, 2) widths and heights of the labels in px, heights all the same.
        boxes: (M, 4) that may not be hidden.
        size: width and height of the picture.

    Returns:
        (N, 4) the places as x1, y1, x2, y2, and by how many px the picture has to be
        wider.
    """
    width, height = size
    places = np.full((len(anchors), 4), np.nan)
    areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1)
    for i, (anchor, label) in enumerate(zip(anchors, sizes, strict=True)):
        tried = _candidates(anchor, *label)
        inside = (tried[:, :2] >= 0).all(axis=1)
        inside &= (tried[:, 2] <= width) & (tried[:, 3] <= height)
        tried = tried[inside]
        covered = _common_areas(tried, boxes) / areas
        free = (covered <= MAX_COVERED).all(axis=1)
        free &= (_common_areas(tried, places[:i][~np.isnan(places[:i, 0])]) == 0).all(1)
        if free.any():
            places[i] = tried[free.argmax()]
    rest = np.flatnonzero(np.isnan(places[:, 0]))
    if not len(rest):
        return places, 0
    rest = rest[np.argsort(anchors[rest, 1] + anchors[rest, 3], kind='stable')]
    # Their own lines in the margin, in several columns if there are many.
    step = sizes[0, 1] + PAD
    per_column = max(1, int(height // step))
    column_width = sizes[rest, 0].max() + 4 * PAD
    columns = -(-len(rest) // per_column)
    for place, i in enumerate(rest):
        column, row = divmod(place, -(-len(rest) // columns))
        x, y = width + 4 * PAD + column * column_width, row * step
        places[i] = (x, y, x + sizes[i, 0], y + sizes[i, 1])
    return places, int(np.ceil(columns * column_width + 4 * PAD))


def leader(anchor: np.ndarray, place: np.ndarray) -> np.ndarray | None:
    """(2, 2) the ends of a line from a label to its box; None where they touch."""
    ends = np.empty((2, 2))
    for axis in (0, 1):
        low, high = anchor[axis], anchor[axis + 2]
        first, last = place[axis], place[axis + 2]
        if last < low:
            ends[:, axis] = last, low
        elif first > high:
            ends[:, axis] = first, high
        else:
            ends[:, axis] = (max(low, first) + min(high, last)) / 2
    return ends if np.abs(ends[0] - ends[1]).max() > 2 * PAD else None


def _candidates(anchor: np.ndarray, width: float, height: float) -> np.ndarray:
    """(C, 4) places of a label, the nearest first: outside its box, in the upper left
    corner of it, then further and further away."""
    x1, y1, x2, y2 = anchor
    corners = []
    for step in range(MAX_STEPS + 1):
        d = step * height
        above, below, left, right = y1 - height - d, y2 + d, x1 - width - d, x2 + d
        corners += [(x1, above), (x1, below), (x2 - width, above), (x2 - width, below)]
        corners += [(right, y1), (left, y1), (right, y2 - height), (left, y2 - height)]
        corners += [(right, above), (left, above), (right, below), (left, below)]
        if step == 0:
            corners.append((x1, y1))
    corners = np.array(corners)
    return np.hstack([corners, corners + (width, height)])


def _common_areas(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(len(some), len(others)) areas that two boxes have in common."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    return np.maximum(high - low, 0).prod(axis=-1)
