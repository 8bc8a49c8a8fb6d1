"""Readers of other people's proposal files, and the cleaning that all boxes get.

Every reader turns its boxes into MMDetection's convention at its own door:
x1, y1, x2, y2 in px, the first pixel is 0, x2 and y2 name the last pixel that the
source counts in (as MMDetection's `XMLDataset` keeps VOC's ground truth), and a
box is x2 - x1 wide. R is the number of boxes of one image.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from mmdet_ohem.image_folder import find_image, list_images


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


def _load_mat(path: str | os.PathLike) -> dict:
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no file {path}: check its path.')
    try:
        return loadmat(path)
    except NotImplementedError as error:
        raise ValueError(
            f"{path} is a MATLAB v7.3 file: save it again with MATLAB's "
            "save(..., '-v7')."
        ) from error
    # SciPy raises whatever its parser trips over in a broken file.
    except Exception as error:
        raise ValueError(
            f'{path} is not a readable .mat file ({error}): fetch it again.'
        ) from error


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
    variables = _load_mat(path)
    missing = {'boxes', 'images'} - variables.keys()
    if missing:
        raise ValueError(
            f'{path} has no variable {sorted(missing)[0]!r}, so it is not a data '
            "set's Selective Search file (if it is a single image's, pass that image "
            'file, not a folder).'
        )
    cells, names = variables['boxes'].ravel(), variables['images'].ravel()
    if cells.dtype != object or names.dtype != object or len(cells) != len(names):
        raise ValueError(
            f"{path} has 'boxes' {variables['boxes'].shape} and 'images' "
            f'{variables["images"].shape}, expected two cells of the same length: '
            "this is not a data set's Selective Search file."
        )
    for index, (cell, name) in enumerate(zip(cells, names, strict=True)):
        if name.dtype.kind != 'U' or name.size != 1:
            raise ValueError(f'{path}: images{{{index + 1}}} is not an image name.')
        name = str(name.item())
        boxes = as_boxes(cell, f'{path}: the cell of image {name!r}')
        yield name, boxes[:, [1, 0, 3, 2]] - 1


def read_image_mat(path: str | os.PathLike) -> np.ndarray:
    """Selective Search of one image, as in Fast R-CNN's demo.

    The file's `boxes` are (x1, y1, x2, y2), 0-based: nothing is to be converted.

    Returns:
        np.ndarray: (R, 4) float32 in MMDetection's convention.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or not of this kind.
    """
    variables = _load_mat(path)
    if 'boxes' not in variables or variables['boxes'].dtype == object:
        raise ValueError(
            f"{path} has no numeric variable 'boxes', so it is not a single image's "
            "Selective Search file (if it is a data set's, pass the image folder)."
        )
    return as_boxes(variables['boxes'], f"{path}: 'boxes'")


def read_mcg_mat(path: str | os.PathLike) -> np.ndarray:
    """MCG proposals of one image, as their authors distribute them for COCO.

    The file's `boxes` are (y1, x1, y2, x2), 1-based and inclusive, best first; as in
    Fast R-CNN's COCO loader all four numbers lose 1.

    Returns:
        np.ndarray: (R, 4) float32 in MMDetection's convention, in the file's order.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or not of this kind.
    """
    variables = _load_mat(path)
    if 'boxes' not in variables or variables['boxes'].dtype == object:
        raise ValueError(
            f"{path} has no numeric variable 'boxes', so it is not MCG's file of one "
            "image (a data set's Selective Search file is read by the command mat)."
        )
    boxes = as_boxes(variables['boxes'], f"{path}: 'boxes'")
    return boxes[:, [1, 0, 3, 2]] - 1


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
        FileNotFoundError, ValueError: As in the two readers above, or files and images
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
