"""Readers of Selective Search boxes in MATLAB's .mat files, as Fast R-CNN has them.

R: boxes of one image. The convention of the boxes stands in boxes.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmdet_ohem.datasets import find_image, list_images
from mmdet_ohem.proposals.boxes import as_boxes
from mmdet_ohem.proposals.mat_file import Variable, read_variables


def read_mats(
    files: list[str], image_paths: list[str]
) -> Iterator[tuple[Path, np.ndarray]]:
    """Read .mat files beside the images that they are of.

    Args:
        files: of whole data sets, or of single images.
        image_paths: one folder, for data sets; or an image for each single file.

    Yields:
        tuple: The image's file, and boxes (R, 4) float32 in MMDetection's convention.

    Raises:
        FileNotFoundError, ValueError: As in the two readers below, or files and images
            do not match.
    """
    for path in image_paths:
        if not Path(path).exists():
            raise FileNotFoundError(f'There is no image or image folder {path}.')
    if not any(Path(path).is_dir() for path in image_paths):
        if len(files) != len(image_paths):
            raise ValueError(
                f'There are {len(files)} .mat files for {len(image_paths)} images: '
                'pass --images one image folder, or one image file for each .mat.'
            )
        for file, image in zip(files, image_paths, strict=True):
            yield Path(image), read_image_mat(file)
        return
    if len(image_paths) > 1:
        raise ValueError('Pass --images one image folder, not several.')
    images = list_images(image_paths[0])
    for file in files:
        for img_id, boxes in read_data_set_mat(file):
            yield find_image(images, img_id, image_paths[0]), boxes


def read_data_set_mat(path: str | os.PathLike) -> Iterator[tuple[str, np.ndarray]]:
    """Selective Search of a whole data set, as Fast R-CNN distributes it for VOC.

    Variables `boxes`, a 1xN cell of (R, 4), and `images`, an Nx1 cell of names.
    The file's boxes are (y1, x1, y2, x2), 1-based and inclusive; as in the release,
    all four numbers lose 1.

    Yields:
        tuple: Image name, and boxes (R, 4) float32 in MMDetection's convention.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or not of this kind.
    """
    variables = find_variables(path)
    missing = {'boxes', 'images'} - variables.keys()
    if missing:
        raise ValueError(
            f'{path} has no variable {sorted(missing)[0]!r}, so it is not a data '
            "set's Selective Search file (if it is a single image's, pass that image "
            'file, not a folder).'
        )
    boxes, names = variables['boxes'], variables['images']
    if not boxes.is_cell or not names.is_cell or boxes.num_items != names.num_items:
        raise ValueError(
            f"{path} has 'boxes' {boxes.shape} and 'images' {names.shape}, expected "
            "two cells of the same length: this is not a data set's Selective Search "
            'file.'
        )
    pairs = zip(boxes.cells(), names.cells(), strict=True)
    for index, (cell, name) in enumerate(pairs):
        if not isinstance(name, str) or not name:
            raise ValueError(f'{path}: images{{{index + 1}}} is not an image name.')
        what = f'{path}: the cell of image {name!r}'
        if not isinstance(cell, np.ndarray):
            raise ValueError(f'{what} does not hold real numbers, so it is no boxes.')
        yield name, as_boxes(cell, what)[:, [1, 0, 3, 2]] - 1


def read_image_mat(path: str | os.PathLike) -> np.ndarray:
    """Selective Search of one image, as in Fast R-CNN's demo.

    The file's `boxes` are (x1, y1, x2, y2), 0-based: nothing is to be converted.

    Returns:
        np.ndarray: (R, 4) float32 in MMDetection's convention.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or not of this kind.
    """
    return as_boxes(
        read_numbers(
            path,
            "so it is not a single image's Selective Search file (if it is a data "
            "set's, pass the image folder)",
        ),
        f"{path}: 'boxes'",
    )


def read_numbers(path: str | os.PathLike, so: str) -> np.ndarray:
    """The variable `boxes` of a file, where it is an array of real numbers.

    Args:
        so: what it means if it is not, for the error.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or not of this kind.
    """
    boxes = find_variables(path).get('boxes')
    if boxes is None or not boxes.is_numeric:
        raise ValueError(f"{path} has no numeric variable 'boxes', {so}.")
    return boxes.array()


def find_variables(path: str | os.PathLike) -> dict[str, Variable]:
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no file {path}: check its path.')
    return read_variables(path)
