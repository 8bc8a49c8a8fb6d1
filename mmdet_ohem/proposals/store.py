"""The proposal store on disk.

Letters for shapes:
    N: images in the store, M: boxes in the store, R: boxes of one image.

A store is a folder of plain `.npy` files, mapped and never loaded:
    ids.npy    (N,) unicode, sorted, so that a binary search finds an image
    spans.npy  (N, 2) int64, first and last + 1 row of each image in boxes.npy
    sizes.npy  (N, 2) int32, width and height of each image in px
    boxes.npy  (M, 4) float32, x1, y1, x2, y2 in px, MMDetection's convention,
               in the order in which their source gave them (best first)
    meta.json  format, numbers of images and boxes, source, SHA-256 of each file above
It holds proposals only, never ground truth.
"""

import ctypes
import hashlib
import json
import math
import os
import re
import shutil
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmdet_ohem.whole_file import naming, only_one

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
FORMAT = 'mmdet_ohem proposals 1'
REMAKE = 'make it with `python tools/prepare_proposals.py`'
ARRAYS = ('ids', 'spans', 'sizes', 'boxes')
# Of one image. A damaged span could else ask for the whole store.
MOST_BOXES = 2**22
# The source may name thousands of files.
LARGEST_META = 2**24
# What NumPy and _write_boxes_header write. NumPy evaluates a header as Python, and
# whatever Python's parser trips over in a damaged one comes out.
_NPY_HEADER = re.compile(
    rb"{'descr': '(<[a-zA-Z])([0-9]{1,9})', 'fortran_order': False, "
    rb"'shape': \(([0-9]{1,18}),(?: ([0-9]{1,18}))?\), } *\n"
)


class ProposalStore:
    """Boxes per image, memory-mapped: processes share its pages.

    A pickled store carries its path alone and opens again where it arrives,
    as DataLoader workers need it.

    Args:
        path (str | Path): Folder that `write_store` made.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder is not a whole store.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        # Its files are opened one after the other, and `write_store` may exchange the
        # folder in between.
        opened = ()
        while opened != self._identity():
            opened = self._identity()
            try:
                self._open()
            except ValueError:
                if opened == self._identity():
                    raise

    def _identity(self) -> tuple[int, ...] | None:
        """Of the folder that is at the path now."""
        with suppress(OSError):
            status = os.stat(self.path)
            return status.st_dev, status.st_ino, status.st_mtime_ns

    def _open(self) -> None:
        if not self.path.is_dir():
            raise FileNotFoundError(
                f'There is no proposal store at {self.path}: {REMAKE}.'
            )
        try:
            meta = self._read_meta()
            images, boxes = meta['images'], meta['boxes']
            self._ids = self._map('ids', '<U', (images,))
            self._spans = self._map('spans', '<i8', (images, 2))
            self._sizes = self._map('sizes', '<i4', (images, 2))
            self._boxes = self._map('boxes', '<f4', (boxes, 4))
        # A RecursionError comes from JSON that is nested deeply.
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f'{self.path} is not a whole proposal store ({error}): {REMAKE}.'
            ) from error

    def _read_meta(self) -> dict:
        path = _regular(self.path / 'meta.json')
        if path.stat().st_size > LARGEST_META:
            raise ValueError(f'meta.json is larger than {LARGEST_META} bytes')
        meta = json.loads(path.read_bytes())
        if meta['format'] != FORMAT:
            raise ValueError(
                f'its format is {str(meta["format"])[:80]!r}, not {FORMAT!r}'
            )
        for key, least in (('images', 1), ('boxes', 0)):
            if type(meta[key]) is not int or meta[key] < least:
                raise ValueError(f'{key} of meta.json is no number from {least}')
        return meta

    def _map(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        with open(_regular(self.path / f'{name}.npy'), 'rb') as file:
            found, size, found_shape = _read_npy_header(file)
            if not f'{found}{size}'.startswith(dtype) or found_shape != shape:
                raise ValueError(
                    f'{name}.npy holds {found}{size} {found_shape}, expected {dtype} '
                    f'{shape}'
                )
            num_bytes = math.prod(shape) * size * (4 if found == '<U' else 1)
            left = os.fstat(file.fileno()).st_size - file.tell()
            if num_bytes != left:
                raise ValueError(f'{name}.npy has {left} bytes instead of {num_bytes}')
            dtype = f'{found}{size}'
            if num_bytes == 0:  # nothing cannot be mapped
                return np.zeros(shape, dtype)
            return np.memmap(file, dtype, 'r', file.tell(), shape)

    def __reduce__(self):
        return ProposalStore, (self.path,)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, img_id) -> bool:
        return self._find(str(img_id)) is not None

    def _find(self, img_id: str) -> int | None:
        # Not np.searchsorted: it copies all ids when img_id is longer than they are.
        index = bisect_left(self._ids, img_id)
        found = index < len(self) and self._ids[index] == img_id
        return index if found else None

    def _checked_ids(self, number: int | None = None) -> list[str]:
        """The first ids, or all. NumPy makes text of numbers that are no characters,
        which Python's own functions need not stand."""
        ids = np.array(self._ids[:number])
        if ids.view(np.uint32).max() > sys.maxunicode:
            raise self._damaged('an image id is no text')
        return ids.tolist()

    def get(self, img_id) -> tuple[np.ndarray, tuple[int, int]]:
        """Look one image up.

        Args:
            img_id (str | int): Image id; its `str` is what the store is sorted by.

        Returns:
            tuple: Boxes (R, 4) float32 as x1, y1, x2, y2 in px of the image file,
                a copy; and the image's (width, height).

        Raises:
            KeyError: The store has no such image.
            ValueError: The store is damaged there. (A number that became another one
                is found by `check` alone.)
        """
        index = self._find(str(img_id))
        if index is None:
            (first,) = self._checked_ids(1)
            raise KeyError(
                f'The proposal store {self.path} has no image {str(img_id)!r} (it has '
                f'{len(self)}, the first is {first!r}): {REMAKE} from all images of '
                'the data set.'
            )
        start, stop = self._spans[index].tolist()
        width, height = self._sizes[index].tolist()
        if not 0 <= start <= stop <= len(self._boxes) or stop - start > MOST_BOXES:
            raise self._damaged(f'image {str(img_id)!r} has the rows {start} to {stop}')
        if width <= 0 or height <= 0:
            raise self._damaged(f'image {str(img_id)!r} is {width}x{height} px')
        boxes = np.array(self._boxes[start:stop])
        if not np.isfinite(boxes).all():
            raise self._damaged(f'a box of image {str(img_id)!r} is not finite')
        return boxes, (width, height)

    def check(self, progress: Callable[[Iterable], Iterable] = iter) -> bool:
        """Read the whole store, and compare it with the checksums of when it was made.

        Args:
            progress: Wraps an iterable to show how far it is, as tqdm does.

        Returns:
            bool: Whether the store has checksums; older versions wrote none, and then
                only what the arrays themselves show was checked.

        Raises:
            ValueError: The store is damaged.
        """
        checksums = self._read_meta().get('sha256')
        if checksums is not None:
            if not isinstance(checksums, dict):
                raise self._damaged('sha256 of meta.json does not name files')
            for name in ARRAYS:
                file = self.path / f'{name}.npy'
                if _sha256(file, progress) != checksums.get(file.name):
                    raise self._damaged(f'{file.name} is not what was written')
        ids = self._checked_ids()
        if any(first >= second for first, second in zip(ids, ids[1:], strict=False)):
            raise self._damaged('its image ids are not sorted')
        starts, stops = self._spans[np.lexsort(self._spans.T[::-1])].T
        if (starts != [0, *stops[:-1]]).any() or stops[-1] != len(self._boxes):
            raise self._damaged('its spans do not divide the boxes among the images')
        for img_id in progress(ids):
            self.get(img_id)
        return checksums is not None

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f'{self.path} is damaged ({what}): {REMAKE}.')


def _regular(path: Path) -> Path:
    # Opening a pipe waits for somebody to write to it.
    if not path.is_file():
        raise FileNotFoundError(f'it has no file {path.name}')
    return path


def _read_npy_header(file: BinaryIO) -> tuple[str, int, tuple[int, ...]]:
    """Kind ('<f') and size ('4') of the numbers, and the shape of the array."""
    start = file.read(10)  # NumPy's format 1.0: magic, version, length of the header
    header = file.read(int.from_bytes(start[8:], 'little'))
    match = _NPY_HEADER.fullmatch(header)
    if start[:8] != b'\x93NUMPY\x01\x00' or match is None:
        raise ValueError(f'{Path(file.name).name} does not start as it was written')
    kind, size, *shape = match.groups()
    shape = tuple(int(side) for side in shape if side is not None)
    return kind.decode(), int(size), shape


def _sha256(path: Path, progress: Callable[[Iterable], Iterable] = iter) -> str:
    digest, block = hashlib.sha256(), 2**20
    with open(path, 'rb') as file:
        for _ in progress(range(-(-os.path.getsize(path) // block))):
            digest.update(file.read(block))
    return digest.hexdigest()


def write_store(
    path: str | os.PathLike,
    records: Iterable[tuple[str, np.ndarray, tuple[int, int]]],
    source: str,
    overwrite: bool = False,
) -> None:
    """Write a store; boxes go to the disk image by image.

    The folder is written beside `path` as `<path>.writing` and then renamed. A
    store that is replaced is there until then; whoever has it open goes on reading it
    (on a local disk). Where `path` is a link, all this happens where it points.

    Args:
        path (str | Path): Folder to make.
        records: (image id, boxes (R, 4), (width, height)) of each image, in any
            order of ids; boxes as in `ProposalStore.get`. May be a generator.
        source (str): Where the boxes come from, for people who read meta.json.
        overwrite (bool): Replace what is there.

    Raises:
        FileExistsError: As in `check_target`.
        OSError: The disk is full or may not be written, or another process is making
            this store.
        ValueError: An image comes twice, or there is none, or what is said of one
            cannot be: a box that is not finite, a size below 1, an id that is not
            UTF-8.
    """
    check_target(Path(path), overwrite)
    path = Path(os.path.realpath(path))  # a link stays one
    writing = path.with_name(f'{path.name}.writing')
    try:
        with only_one(writing, 'the making of this store'):
            for left in writing.iterdir():
                left.unlink()
            try:
                _write_arrays(writing, records, source)
                _put_in_place(writing, path)
            except BaseException:
                shutil.rmtree(writing, ignore_errors=True)
                raise
    except BlockingIOError:
        raise
    except OSError as error:
        raise naming(path, error, writing) from error


def check_target(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError if a store may not be written to `path`."""
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(
            f'{path} exists already: choose another name or pass --overwrite.'
        )
    if not (path / 'meta.json').exists() or not (path / 'spans.npy').exists():
        raise FileExistsError(
            f'{path} is not a proposal store and will not be replaced: choose another '
            'name.'
        )


def _write_arrays(folder: Path, records: Iterable, source: str) -> None:
    # 118k images must not need 118k tuples: arrays hold plain numbers.
    ids, spans, sizes, total = [], array('q'), array('i'), 0
    with open(folder / 'boxes.npy', 'wb') as file:
        _write_boxes_header(file, 0)
        for img_id, boxes, (width, height) in records:
            boxes = np.ascontiguousarray(boxes, dtype='<f4').reshape(-1, 4)
            _check_record(str(img_id), boxes, width, height, source)
            file.write(boxes.tobytes())
            ids.append(str(img_id))
            spans.extend((total, total + len(boxes)))
            sizes.extend((width, height))
            total += len(boxes)
        # NumPy pads headers to 64 bytes or more: a larger number fits in place.
        file.seek(0)
        _write_boxes_header(file, total)

    if not ids:
        raise ValueError(f'{source} has no images, so there is no store to write.')
    ids = np.array(ids, dtype=np.str_)
    order = np.argsort(ids, kind='stable')
    ids = ids[order]
    twice = ids[1:][ids[1:] == ids[:-1]]
    if len(twice):
        raise ValueError(
            f'Image {str(twice[0])!r} comes twice in {source}: image ids must differ.'
        )
    np.save(folder / 'ids.npy', ids)
    np.save(folder / 'spans.npy', np.array(spans, np.int64).reshape(-1, 2)[order])
    np.save(folder / 'sizes.npy', np.array(sizes, np.int32).reshape(-1, 2)[order])
    meta = {'format': FORMAT, 'images': len(ids), 'boxes': total, 'source': source}
    meta['sha256'] = {f'{name}.npy': _sha256(folder / f'{name}.npy') for name in ARRAYS}
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1))


def _check_record(
    img_id: str, boxes: np.ndarray, width: int, height: int, source: str
) -> None:
    if not np.isfinite(boxes).all():
        raise ValueError(
            f'Image {img_id!r} of {source} has a box that is not finite: repair its '
            'proposals.'
        )
    if len(boxes) > MOST_BOXES:
        raise ValueError(
            f'Image {img_id!r} of {source} has {len(boxes)} boxes, more than '
            f'{MOST_BOXES}: keep the best.'
        )
    if width < 1 or height < 1:
        raise ValueError(
            f'Image {img_id!r} of {source} is {width}x{height} px: repair it.'
        )
    try:
        img_id.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f'The image id {img_id!r} of {source} is not UTF-8: rename the image.'
        ) from error


def _write_boxes_header(file, total: int) -> None:
    header = {'descr': '<f4', 'fortran_order': False, 'shape': (total, 4)}
    np.lib.format.write_array_header_1_0(file, header)


def _put_in_place(writing: Path, path: Path) -> None:
    if not path.exists():
        os.replace(writing, path)
    elif _exchange(writing, path):
        shutil.rmtree(writing, ignore_errors=True)
    else:
        # What a stop between the two leaves as `.old` goes when the next store is in
        # place.
        old = path.with_name(f'{path.name}.old')
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        try:
            os.replace(writing, path)
        except BaseException:
            os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, so that a training that starts meanwhile finds
    a store; False where the system cannot (Linux can on most file systems)."""
    if sys.platform != 'linux':
        return False
    names = AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other)
    try:
        return ctypes.CDLL(None).renameat2(*names, RENAME_EXCHANGE) == 0
    except AttributeError:  # a C library without it
        return False
