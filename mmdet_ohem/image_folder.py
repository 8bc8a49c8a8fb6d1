"""Images in a folder: which there are, and how large."""

import os
from pathlib import Path

from PIL import Image

IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.ppm'}
EXIF_ORIENTATION = 0x0112


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height in px, from the header, turned as OpenCV turns the image.

    Raises:
        ValueError: The file is not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except OSError as error:
        raise ValueError(
            f'{path} cannot be read as an image: replace or remove it.'
        ) from error
    return (height, width) if turned else (width, height)


def list_images(folder: str | os.PathLike) -> dict[str, Path]:
    """The images of a folder by image id, which is the file name without suffix.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no image, or two of the same id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no image folder {folder}: check its path.')
    images = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem in images:
            raise ValueError(
                f'{images[path.stem]} and {path.name} have the same image id: remove '
                'or rename one.'
            )
        images[path.stem] = path
    if not images:
        raise ValueError(f'{folder} has no image in it: check its path.')
    return images


def pick_images(folder: str, id_lists: list[str] | None) -> dict[str, Path]:
    """The images of a folder by image id: those that the lists name, or all.

    Args:
        folder: as in `list_images`.
        id_lists: files with an image id a line, such as VOC's ImageSets/Main/*.txt.

    Raises:
        FileNotFoundError, ValueError: as in `list_images`, or a listed image is not
            there.
    """
    images = list_images(folder)
    if not id_lists:
        return images
    ids = {}
    for id_list in id_lists:
        # VOC's lists of one class hold a second column.
        lines = Path(id_list).read_text().splitlines()
        for line in filter(None, map(str.strip, lines)):
            ids[line if line in images else line.split()[0]] = None
    return {img_id: find_image(images, img_id, folder) for img_id in ids}


def find_image(images: dict[str, Path], img_id: str, folder: str) -> Path:
    """The file of an image, of what `list_images` found; ValueError if not there."""
    if img_id not in images:
        raise ValueError(
            f'The image folder {folder} has no image {img_id!r}: is it of another data '
            'set?'
        )
    return images[img_id]
