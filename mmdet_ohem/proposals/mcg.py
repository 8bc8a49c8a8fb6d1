"""Reader of MCG boxes, which come as a .mat file for each image.

R: boxes of one image. The convention of the boxes stands in boxes.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmdet_ohem.proposals.boxes import as_boxes
from mmdet_ohem.proposals.mat import read_numbers


def read_mcg_folder(
    folder: str | os.PathLike, images: dict[str, Path]
) -> Iterator[tuple[Path, np.ndarray]]:
    """Read the MCG file of every image, one at a time.

    Args:
        folder: with IMAGE_ID.mat of each image, in subfolders too: the release spreads
            them over COCO_val2014_0/COCO_val2014_000000447/...
        images: image files by image id.

    Yields:
        tuple: The image's file, and boxes (R, 4) float32 in MMDetection's convention.

    Raises:
        FileNotFoundError, ValueError: As in `read_mcg_mat`, or an image has no file.
    """
    files = {path.stem: path for path in Path(folder).rglob('*.mat')}
    missing = [img_id for img_id in images if img_id not in files]
    if missing:
        raise FileNotFoundError(
            f'{folder} has no {missing[0]}.mat ({len(missing)} of {len(images)} images '
            'have none): pass the folder of the MCG files of these images.'
        )
    for img_id, image in images.items():
        yield image, read_mcg_mat(files[img_id])


def read_mcg_mat(path: str | os.PathLike) -> np.ndarray:
    """MCG proposals of one image, as their authors distribute them for COCO.

    The file's `boxes` are (y1, x1, y2, x2), 1-based and inclusive, best first; as in
    Fast R-CNN's COCO loader all four numbers lose 1.

    Returns:
        np.ndarray: (R, 4) float32 in MMDetection's convention, in the file's order.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or not of this kind.
    """
    boxes = as_boxes(
        read_numbers(
            path,
            "so it is not MCG's file of one image (a data set's Selective Search file "
            'is read by the command mat)',
        ),
        f"{path}: 'boxes'",
    )
    return boxes[:, [1, 0, 3, 2]] - 1
