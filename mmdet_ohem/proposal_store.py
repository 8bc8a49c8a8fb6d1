"""The proposal store on disk.

Letters for shapes:
    N: images in the store, M: boxes in the store, R: boxes of one image.

A store is a folder of plain `.npy` files, mapped and never loaded:
    ids.npy    (N,) unicode, sorted, so that a binary search finds an image
    spans.npy  (N, 2) int64, first and last + 1 row of each image in boxes.npy
    sizes.npy  (N, 2) int32, width and height of each image in px
    boxes.npy  (M, 4) float32, x1, y1, x2, y2 in px, MMDetection's convention,
               in the order in which their source gave them (best first)
    meta.json  format, numbers of images and boxes, source
It holds proposals only, never ground truth.
"""

import json
import os
import shutil
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

import numpy as np

FORMAT = 'mmdet_ohem proposals 1'
REMAKE = 'make it with `python tools/prepare_proposals.py`'


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
        if not self.path.is_dir():
            raise FileNotFoundError(
                f'There is no proposal store at {self.path}: {REMAKE}.'
            )
        try:
            meta = json.loads((self.path / 'meta.json').read_text())
            if meta['format'] != FORMAT:
                raise ValueError(f'its format is {meta["format"]!r}, not {FORMAT!r}')
            images, boxes = meta['images'], meta['boxes']
            self._ids = self._map('ids', '<U', (images,))
            self._spans = self._map('spans', '<i8', (images, 2))
            self._sizes = self._map('sizes', '<i4', (images, 2))
            self._boxes = self._map('boxes', '<f4', (boxes, 4))
        # ValueError covers broken JSON, a foreign .npy and one that was cut off.
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{self.path} is not a whole proposal store ({error}): {REMAKE}.'
            ) from error

    def _map(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        mmap_mode = 'r' if 0 not in shape else None  # nothing cannot be mapped
        values = np.load(self.path / f'{name}.npy', mmap_mode, allow_pickle=False)
        if not values.dtype.str.startswith(dtype) or values.shape != shape:
            raise ValueError(
                f'{name}.npy holds {values.dtype.str} {values.shape}, expected '
                f'{dtype} {shape}'
            )
        return values

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

    def get(self, img_id) -> tuple[np.ndarray, tuple[int, int]]:
        """Look one image up.

        Args:
            img_id (str | int): Image id; its `str` is what the store is sorted by.

        Returns:
            tuple: Boxes (R, 4) float32 as x1, y1, x2, y2 in px of the image file,
                a copy; and the image's (width, height).

        Raises:
            KeyError: The store has no such image.
        """
        index = self._find(str(img_id))
        if index is None:
            raise KeyError(
                f'The proposal store {self.path} has no image {str(img_id)!r} (it has '
                f'{len(self)}, the first is {str(self._ids[0])!r}): {REMAKE} from '
                'all images of the data set.'
            )
        start, stop = self._spans[index]
        width, height = self._sizes[index]
        return np.array(self._boxes[start:stop]), (int(width), int(height))


def write_store(
    path: str | os.PathLike,
    records: Iterable[tuple[str, np.ndarray, tuple[int, int]]],
    source: str,
    overwrite: bool = False,
) -> None:
    """Write a store; boxes go to the disk image by image.

    The folder is written beside `path` as `<path>.writing` and then renamed. A
    store that is replaced lives on as `<path>.old` until the new one is in place.

    Args:
        path (str | Path): Folder to make.
        records: (image id, boxes (R, 4), (width, height)) of each image, in any
            order of ids; boxes as in `ProposalStore.get`. May be a generator.
        source (str): Where the boxes come from, for people who read meta.json.
        overwrite (bool): Replace what is there.

    Raises:
        FileExistsError: As in `check_target`.
        ValueError: An image comes twice, or there is none, or a box is not finite.
    """
    path = Path(path)
    check_target(path, overwrite)
    writing = path.with_name(f'{path.name}.writing')
    if writing.exists():
        shutil.rmtree(writing)
    writing.mkdir(parents=True)
    try:
        _write_arrays(writing, records, source)
    except BaseException:
        shutil.rmtree(writing)
        raise
    _put_in_place(writing, path)


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
            if not np.isfinite(boxes).all():
                raise ValueError(
                    f'Image {img_id!r} of {source} has a box that is not finite: '
                    'repair its proposals.'
                )
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
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1))


def _write_boxes_header(file, total: int) -> None:
    header = {'descr': '<f4', 'fortran_order': False, 'shape': (total, 4)}
    np.lib.format.write_array_header_1_0(file, header)


def _put_in_place(writing: Path, path: Path) -> None:
    # A folder that is not empty cannot be replaced in one step. What a stop between
    # the two leaves as `.old` goes when the next store is in place.
    old = path.with_name(f'{path.name}.old')
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    try:
        os.replace(writing, path)
    except BaseException:
        if old.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)
