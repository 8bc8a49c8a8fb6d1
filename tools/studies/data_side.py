"""What proposals cost on the data side: seconds per image, memory and opening time.

This package's store and MMDetection's `proposal_file` in turn, in one run, on Linux.
"""

import os
import pickle
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.datasets import BaseDetDataset
from mmdet.utils import register_all_modules
from torch.utils.data import DataLoader
from tqdm import tqdm

from mmdet_ohem.datasets import draw_image, image_size, list_images
from mmdet_ohem.proposals import LoadStoredProposals, write_store

PICTURES = 32
PICTURE_SIZE = (500, 375)  # px, as most of VOC's photographs
NOISE = 6  # of 255; it brings the JPEGs to the size of photographs, 86 kB
READS = 300  # images that a worker reads before its memory is taken
# Of the images in MMDetection's `proposal_file`: one of 118k images takes several times
# its 4.7 GB while it loads.
PART = 1 / 20
# MMDetection's configs fork workers, which share the data set with their parent. Other
# start methods (Python 3.14 has another default) give each a copy: one shows its size.
WORKERS = (('fork', 1), ('fork', 4), ('fork', 8), ('spawn', 1))
SMAPS = Path('/proc/self/smaps_rollup')


class _Images(BaseDetDataset):
    """Images (path, (width, height)) with a ground-truth box each."""

    METAINFO = dict(classes=('object',))

    def __init__(
        self, images: Iterable[tuple[Path, tuple[int, int]]], **kwargs
    ) -> None:
        self._images = images
        super().__init__(**kwargs)
        del self._images  # workers would get it beside the data set

    def load_data_list(self) -> list[dict]:
        return [
            dict(
                img_id=path.stem,
                img_path=str(path),
                ori_shape=(height, width),
                img_shape=(height, width),
                instances=[
                    dict(bbox=[9, 9, width / 2, height], bbox_label=0, ignore_flag=0)
                ],
            )
            for path, (width, height) in self._images
        ]


class _Readings:
    """Item i: the unshared memory of worker i after it has read its images."""

    def __init__(self, images: _Images, num_workers: int) -> None:
        self.images, self.num_workers = images, num_workers

    def __len__(self) -> int:
        return self.num_workers

    def __getitem__(self, worker: int) -> list[float]:
        rng = np.random.default_rng(worker)
        for index in rng.integers(len(self.images), size=READS).tolist():
            self.images[index]
        return unshared_memory()


def unshared_memory() -> list[float]:
    """Memory that this process shares with no other (USS), MB (10^6 bytes), two parts:

    Private_Clean, pages of files that no other process maps at the moment, which are
    the kernel's to drop at any time, and Private_Dirty, what the process has written.
    """
    sizes = dict(line.split()[:2] for line in SMAPS.read_text().splitlines()[1:])
    kinds = ('Private_Clean:', 'Private_Dirty:')
    return [int(sizes[kind]) * 1024 / 1e6 for kind in kinds]


def measure(
    num_images: int = 118_000,
    boxes_per_image: int = 2000,
    folder: Path | None = None,
    rounds: int = 5,
) -> dict:
    """Measure all; what is written for it is removed at the end.

    Args:
        num_images: of the store whose memory is measured; its boxes are random.
        boxes_per_image: random too, for the pipelines and in the store.
        folder: the pipelines read its first 32 images; None: generated JPEGs, 500x375.
        rounds: each way has its turn in each.

    Returns:
        dict: For `tabulate` and JSON; `ratio` is MMDetection's median seconds per image
            / this package's.

    Raises:
        OSError: The temporary folder has not enough space, or this is not Linux.
    """
    if not SMAPS.exists():
        raise OSError(f'There is no {SMAPS}: measure memory on Linux.')
    part = max(round(PART * num_images), 1)
    _check_space(boxes_per_image * (16 * num_images + 20 * part))
    with tempfile.TemporaryDirectory(prefix='mmdet_ohem_') as scratch:
        pipelines = _time_pipelines(Path(scratch), folder, boxes_per_image, rounds)
        observed = _observe_all(
            Path(scratch), num_images, part, boxes_per_image, rounds
        )
    theirs, ours = (statistics.median(pipelines[key]) for key in ('mmdet', 'ours'))
    return dict(
        num_images=num_images,
        boxes_per_image=boxes_per_image,
        pictures=str(folder or 'generated JPEGs, 500x375'),
        pipelines=pipelines,
        ratio=theirs / ours,
        scale=num_images / part,
        observed=observed,
    )


def _check_space(num_bytes: int) -> None:
    scratch = tempfile.gettempdir()
    needed, free = 1.05 * num_bytes / 1e9, shutil.disk_usage(scratch).free / 1e9
    if free < needed:
        raise OSError(
            f'The benchmark writes {needed:.1f} GB to {scratch}, which has {free:.1f} '
            'GB free: set TMPDIR to a folder on a larger disk.'
        )


def _in_fresh_process(function, *args):
    # A server that has only imported, and once, is forked: nothing of this process's
    # memory is inherited.
    context = get_context('forkserver')
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


# ------------------------------------------------------------------- the pipelines


def pipelines_of(store: Path) -> dict[str, list[dict]]:
    """The training pipelines with proposals, this package's and MMDetection's own."""
    load_image = dict(type='LoadImageFromFile')
    load_annotations = dict(type='LoadAnnotations', with_bbox=True)
    resize = dict(type='Resize', scale=(1000, 600), keep_ratio=True)
    flip = dict(type='RandomFlip', prob=0.5)
    load_stored = dict(type='mmdet_ohem.LoadStoredProposals', store=str(store))
    load_proposals = dict(type='LoadProposals', num_max_proposals=2000)
    broadcast = dict(type='ProposalBroadcaster', transforms=[resize, flip])
    pack = dict(type='PackDetInputs')
    return dict(
        ours=[load_image, load_annotations, resize, flip, load_stored, pack],
        mmdet=[load_image, load_proposals, load_annotations, broadcast, pack],
    )


def _time_pipelines(
    scratch: Path, folder: Path | None, boxes_per_image: int, rounds: int
) -> dict[str, list[float]]:
    if folder is None:
        folder = scratch / 'pictures'
        _draw_pictures(folder)
    paths = list(list_images(folder).values())[:PICTURES]
    images = [(path, image_size(path)) for path in paths]
    store, proposal_file = scratch / 'few', scratch / 'few.pkl'
    _write_proposals(images, len(images), boxes_per_image, store, proposal_file)
    return _in_fresh_process(_take_turns, images, store, proposal_file, rounds)


def _take_turns(
    images: list, store: Path, proposal_file: Path, rounds: int
) -> dict[str, list[float]]:
    """Seconds per image of each round, on one thread as in a worker of a DataLoader."""
    register_all_modules()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    pipelines, files = pipelines_of(store), dict(ours=None, mmdet=str(proposal_file))
    datasets = {
        key: _Images(images, pipeline=pipelines[key], proposal_file=files[key])
        for key in files
    }
    seconds = {key: np.zeros((rounds + 1, len(images))) for key in datasets}
    for turn, index in np.ndindex(rounds + 1, len(images)):
        for key, dataset in datasets.items():
            np.random.seed(turn * len(images) + index)  # both flip the same images
            start = time.perf_counter()
            dataset[index]
            seconds[key][turn, index] = time.perf_counter() - start
    # The first round warms up.
    return {key: values[1:].mean(axis=1).tolist() for key, values in seconds.items()}


def _draw_pictures(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        picture = cv2.resize(draw_image(rng)[0], PICTURE_SIZE)
        picture = picture + rng.normal(0, NOISE, picture.shape)
        path = folder / f'{number:06d}.jpg'
        cv2.imwrite(str(path), np.clip(picture, 0, 255).astype(np.uint8))


# -------------------------------------------------------------- memory and opening


def _observe_all(
    scratch: Path, num_images: int, part: int, boxes_per_image: int, rounds: int
) -> dict[str, list[dict]]:
    store, proposal_file = scratch / 'store', scratch / 'proposals.pkl'
    progress = tqdm(_imagined(num_images), 'writing the store', num_images)
    _write_proposals(progress, part, boxes_per_image, store, proposal_file)
    # The same data set with proposals and without: the difference is their cost.
    ways = dict(
        store=(num_images, store, None),
        without_store=(num_images, None, None),
        mmdet=(part, None, str(proposal_file)),
        without_mmdet=(part, None, None),
    )
    observed = {way: [] for way in ways}
    for _ in tqdm(range(rounds), 'memory'):
        for way, arguments in ways.items():
            for path in (*store.iterdir(), proposal_file):
                _drop_from_memory(path)
            observed[way].append(_in_fresh_process(_observe, *arguments))
    return observed


def _imagined(num_images: int) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Images whose files are not needed: the workers read proposals only."""
    for number in range(num_images):
        yield Path('images', f'{number:012d}.jpg'), PICTURE_SIZE


def _drop_from_memory(path: Path) -> None:
    """Have the file read from the disk the next time. Pages that are not on the disk
    yet would also count as written by whoever maps them."""
    with open(path, 'rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _observe(num_images: int, store: Path | None, proposal_file: str | None) -> dict:
    """Seconds and memory of a training process and its workers.

    Returns:
        dict: `open`, seconds for the store, or without one for the whole data set;
            `read`, median seconds for one image; `memory`, for the process itself
            ('main') and each of `WORKERS` a list of `unshared_memory`, one each.
    """
    # More workers than cores cost speed, which is not what is measured of them.
    warnings.filterwarnings('ignore', 'This DataLoader will create')
    start = time.perf_counter()
    steps = [] if store is None else [LoadStoredProposals(str(store))]
    opened = time.perf_counter()
    images = _Images(_imagined(num_images), pipeline=steps, proposal_file=proposal_file)
    if store is None:
        opened = time.perf_counter()
    seconds_open = opened - start
    memory = dict(main=[unshared_memory()])
    for start_method, num_workers in WORKERS:
        loader = DataLoader(
            _Readings(images, num_workers),  # as many items as workers: one for each
            batch_size=None,
            num_workers=num_workers,
            multiprocessing_context=start_method,
        )
        memory[f'{start_method} {num_workers}'] = list(loader)
    read = []
    for index in np.random.default_rng().integers(num_images, size=READS).tolist():
        start = time.perf_counter()
        images[index]
        read.append(time.perf_counter() - start)
    return dict(open=seconds_open, read=statistics.median(read), memory=memory)


# ----------------------------------------------------------------------- proposals


def _write_proposals(
    images: Iterable, part: int, boxes_per_image: int, store: Path, proposal_file: Path
) -> None:
    """The store, and for the first `part` images what `BaseDetDataset` reads."""
    rng = np.random.default_rng(0)
    dump = {}

    def records():
        for image, size in images:
            half = np.array(size, np.float32) / 2
            corner, sides = half * rng.random((2, boxes_per_image, 2), np.float32)
            boxes = np.concatenate([corner, corner + np.maximum(sides, 1)], axis=1)
            if len(dump) < part:
                scores = np.zeros(boxes_per_image, np.float32)
                key = f'{image.parent.name}/{image.name}'
                dump[key] = dict(bboxes=boxes, scores=scores)
            yield image.stem, boxes, size

    write_store(store, records(), source='random boxes of the benchmark')
    proposal_file.write_bytes(pickle.dumps(dump))


# -------------------------------------------------------------------------- tables


def tabulate(results: dict) -> str:
    """Three Markdown tables, and what they count, of what `measure` returned."""
    scale, observed = results['scale'], results['observed']
    seconds = {
        (key, way): np.array([seen[key] for seen in observed[way]])
        for key in ('open', 'read')
        for way in observed
    }
    ours, theirs = (
        _spread(results['pipelines'][key], 1000, 1) for key in ('ours', 'mmdet')
    )
    theirs_open = seconds['open', 'mmdet'] - np.median(seconds['open', 'without_mmdet'])
    time_rows = [
        f'training pipeline, ms per image | {ours} | {theirs}',
        f'its ratio | | {results["ratio"]:.2f}',
        f'opening, ms | {_spread(seconds["open", "store"], 1000, 1)} '
        f'| {_spread(theirs_open, 1000 * scale, 1)}*',
        f'reading one image, ms | {_spread(seconds["read", "store"], 1000, 3)} '
        f'| {_spread(seconds["read", "mmdet"], 1000, 3)}',
    ]
    memory_rows = []
    for key in observed['store'][0]['memory']:
        ours, theirs = (_extra(observed, way, key) for way in ('store', 'mmdet'))
        # Forked workers share the data set, however large, with their parent.
        factor, mark = (1, '') if key.startswith('fork') else (scale, '*')
        name = 'training process' if key == 'main' else f'each worker, {key}'
        memory_rows.append(
            f'{name} | {_spread(ours.sum(axis=1))} | {np.median(ours[:, 1]):.1f} '
            f'| {_spread(theirs.sum(axis=1), factor)}{mark}'
        )
    return '\n'.join(
        [
            f'{results["num_images"]} images, {results["boxes_per_image"]} random '
            f'boxes in each; pipelines on {results["pictures"]}. Medians (lowest to '
            'highest).',
            '',
            '| time | store | `proposal_file` |',
            '|---|---|---|',
            *(f'| {row} |' for row in time_rows),
            '',
            '| unshared memory above that without proposals, MB | store | of it '
            'written | `proposal_file` |',
            '|---|---|---|---|',
            *(f'| {row} |' for row in memory_rows),
            '',
            f'Opening is from the disk, in a fresh process; each worker has read '
            f'{READS} random images. Unshared memory is Private_Clean, pages of files '
            'that this process alone has mapped (page cache, which grows with the '
            'images read and which the kernel drops when it needs room), and '
            'Private_Dirty, what it has written, with what its allocator keeps. '
            f'\\* Measured with 1/{scale:g} of the images and multiplied.',
        ]
    )


def _extra(observed: dict, way: str, key: str) -> np.ndarray:
    """(rounds * processes, 2) MB, less the median without proposals."""
    values, without = (
        np.array(
            [process for seen in observed[name] for process in seen['memory'][key]]
        )
        for name in (way, f'without_{way}')
    )
    return values - np.median(without, axis=0)


def _spread(values: Iterable[float], factor: float = 1, digits: int = 1) -> str:
    low, middle, high = factor * np.quantile(values, [0, 0.5, 1])
    return f'{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})'
