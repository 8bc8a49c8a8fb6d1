"""Boxes as other people's files hold them, and the cleaning that all boxes get.

Every reader of this room turns its boxes into MMDetection's convention at its own door:
x1, y1, x2, y2 in px, the first pixel is 0, x2 and y2 name the last pixel that the
source counts in (as MMDetection's `XMLDataset` keeps VOC's ground truth), and a
box is x2 - x1 wide. R is the number of boxes of one image.
"""

import numpy as np


def clean_boxes(
    boxes: np.ndarray, size: tuple[int, int], min_size: float = 2, name: str = ''
) -> np.ndarray:
    """Clip boxes to the image, then drop duplicates and small ones.

    The release's loaders do so too (`unique_boxes`, `filter_small_boxes` of
    Fast R-CNN's ds_utils.py, min_size 2) with a side of x2 - x1, without + 1. Its
    filter asks for a height strictly above min_size by what looks like a slip;
    here both sides may be equal to it.

    Args:
        boxes (np.ndarray): (R, 4) as x1, y1, x2, y2 in px.
        size (tuple[int, int]): Width and height of the image in px.
        min_size (float): The shortest x2 - x1 and y2 - y1 to keep, in px.
        name (str): What an error calls the image.

    Returns:
        np.ndarray: (R', 4) float32, R' <= R, in the order they came; of equal boxes
            the first stays.

    Raises:
        ValueError: A box is NaN or infinite.
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise ValueError(
            f'The proposals of image {name!r} hold a NaN or infinite box: repair the '
            'file that they come from.'
        )
    boxes = np.clip(boxes, 0, np.array([*size, *size], dtype=np.float32))
    _, first = np.unique(boxes, axis=0, return_index=True)
    boxes = boxes[np.sort(first)]
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes[(sides >= min_size).all(axis=1)]


def as_boxes(boxes, what: str) -> np.ndarray:
    """Boxes of a file as (R, 4) float32.

    Args:
        what: what an error message calls them.

    Raises:
        ValueError: they are no such numbers.
    """
    boxes = np.asarray(boxes)
    if boxes.dtype.kind not in 'iuf' or (
        boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4)
    ):
        raise ValueError(
            f'{what} is {boxes.dtype} of shape {boxes.shape}, but boxes are numbers of '
            'shape (R, 4): this is not a proposal file of the kind that was named.'
        )
    # uint16 must not wrap around when 1 is subtracted.
    return boxes.reshape(-1, 4).astype(np.float32)
