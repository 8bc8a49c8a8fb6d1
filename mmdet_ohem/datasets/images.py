"""Images in a folder, or of a pool: which there are, and how large."""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.ppm'}
EXIF_ORIENTATION = 0x0112
# Formats that OpenCV reads too: Pillow tries some forty on a file of none of them.
FORMATS = ('BMP', 'DIB', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
# 400 MB as BGR. OpenCV takes up to eight times as many, which a file of a few kB can
# claim.
MOST_PIXELS = 2**27
LONGEST_LINE = 255  # of a list; no name of a file is longer
LONGEST_PATH = 4096  # linux/limits.h


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height in px, from the header, turned as OpenCV turns the image.

    Raises:
        ValueError: The file is not an image, or has more than `MOST_PIXELS`.
    """
    try:
        if not os.path.isfile(path):  # opening a pipe waits for somebody to write
            raise FileNotFoundError(path)
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height <= MOST_PIXELS:
                turned = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
                return (height, width) if turned else (width, height)
    # Pillow promises no kind for a broken file.
    except Exception as error:
        raise ValueError(
            f'{path} cannot be read as an image: replace or remove it.'
        ) from error
    raise ValueError(
        f'{path} claims to have {width}x{height} px, more than the {MOST_PIXELS} that '
        'are read: resize or remove it.'
    )


def read_image(path: str | os.PathLike) -> np.ndarray | None:
    """(H, W, 3) uint8 BGR, or None of a file that cannot be read as an image."""
    try:
        image_size(path)
        # cv2.imread ends the process at a name that is not UTF-8.
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, ValueError, cv2.error):
        return None


def list_images(folder: str | os.PathLike) -> dict[str, Path]:
    """The images of a folder by image id, which is the file name without suffix.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no image, two of the same id, or a name that is not UTF-8.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no image folder {folder}: check its path.')
    images = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if not _is_utf8(path.name):
            raise ValueError(
                f'The name of the image {str(path)!r} is not UTF-8: rename or remove '
                'it.'
            )
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
        for line in filter(None, map(str.strip, read_lines(id_list))):
            ids[line if line in images else line.split()[0]] = None
    return {img_id: find_image(images, img_id, folder) for img_id in ids}


def picture_files(names: Iterable[str]) -> list[str]:
    """Files as they are; of a folder its images; of a pattern (*.jpg) what it matches.

    Raises:
        ValueError: there is no such file, or nothing in the folder or of the pattern.
    """
    found: dict[str, None] = {}
    for name in map(str, names):
        is_folder = os.path.isdir(name)
        if is_folder:
            files = [
                os.path.join(name, file)
                for file in os.listdir(name)
                if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES
            ]
        elif os.path.exists(name):
            files = [name]
        else:
            files = filter(os.path.isfile, glob.glob(name, recursive=True))
        files = sorted(files)
        if not files:
            what = 'has no picture in it' if is_folder else 'is not there'
            raise ValueError(f'{name} {what}: give pictures, folders or patterns.')
        found |= dict.fromkeys(files)
    return list(found)


def pool_pictures(pool: str) -> list[str]:
    """The absolute paths of a pool's pictures, sorted.

    Args:
        pool: a folder, a pattern (**/*.jpg), or a list: a text file, *.txt, with the
            path of a picture a line, from the folder of the list on.

    Raises:
        OSError: the list cannot be read.
        ValueError: there is nothing of this name; or the list is empty, no text, or
            names files that are not there.
    """
    if not (pool.endswith('.txt') and os.path.isfile(pool)):
        return sorted(map(os.path.abspath, picture_files([pool])))
    folder = os.path.dirname(os.path.abspath(pool))
    lines = filter(None, map(str.strip, read_lines(pool, LONGEST_PATH)))
    paths = {os.path.normpath(os.path.join(folder, line)) for line in lines}
    if not paths:
        raise ValueError(
            f'{pool} names no picture: write the path of one on each line.'
        )
    missing = sorted(path for path in paths if not os.path.isfile(path))
    if missing:
        raise ValueError(
            f'{len(missing)} of the {len(paths)} pictures that {pool} names are not '
            f'there, {missing[0]} first: correct the list, whose paths start from its '
            'own folder.'
        )
    return sorted(paths)


def picture_ids(files: list[str]) -> dict[str, str]:
    """The files of a pool's pictures by image id: the name without suffix, after the
    folders below the one that all of them have in common, such as 'street/0012'.

    Args:
        files: of `pool_pictures`.

    Raises:
        ValueError: two have the same id, or a name is not UTF-8.
    """
    # Of sorted names the first and the last have in common what all have.
    folder = os.path.dirname(os.path.commonprefix([files[0], files[-1]]))
    start = len(folder.rstrip('/')) + 1
    found: dict[str, str] = {}
    for file in files:
        img_id = os.path.splitext(file)[0][start:]
        if not _is_utf8(file):
            raise ValueError(
                f'The name of the image {file!r} is not UTF-8: rename or remove it.'
            )
        if found.setdefault(img_id, file) != file:
            raise ValueError(
                f'{found[img_id]} and {file} have the same image id: remove or rename '
                'one.'
            )
    return found


def same_content(
    some: Iterable[str], others: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Those of some files that are equal to one of others, byte by byte, whatever their
    names, each with the other. Files that are not there are equal to none."""
    by_size: dict[int, dict[str, str]] = {}
    for file in others:
        if os.path.isfile(file):
            digests = by_size.setdefault(os.path.getsize(file), {})
            digests[content_hash(file)] = file
    for file in some:
        if not os.path.isfile(file):
            continue
        digests = by_size.get(os.path.getsize(file))  # most have another size
        if digests and (digest := content_hash(file)) in digests:
            yield file, digests[digest]


def content_hash(file: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, 'rb') as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_lines(path: str | os.PathLike, longest_line: int = LONGEST_LINE) -> list[str]:
    """The lines of a list of images.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no text.
    """
    try:
        lines = Path(path).read_text('utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{path} is no list of images, for it is not UTF-8: check its path.'
        ) from error
    longest = max(map(len, lines), default=0)
    if longest > longest_line:
        raise ValueError(
            f'{path} is no list of images, for a line has {longest} characters: check '
            'its path.'
        )
    return lines


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_image(images: dict[str, Path], img_id: str, folder: str) -> Path:
    """The file of an image, of what `list_images` found; ValueError if not there."""
    if img_id not in images:
        raise ValueError(
            f'The image folder {folder} has no image {img_id!r}: is it of another data '
            'set?'
        )
    return images[img_id]
