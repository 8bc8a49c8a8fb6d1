"""Selective Search (Uijlings et al., IJCV 2013) through OpenCV's contrib modules."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from mmdet_ohem.datasets import read_image
from mmdet_ohem.whole_file import whole_file

# Images that are searched or wait for whoever uses their boxes, see search_in_order.
AHEAD = 64


def selective_search(image: np.ndarray, quality: bool = False) -> np.ndarray:
    """Propose boxes for one image.

    The image is searched at its own size, as for the boxes that Fast R-CNN
    distributes. (R-CNN's code resized to a width of 500 px first, which VOC's images
    have anyway.)

    Args:
        image (np.ndarray): (H, W, 3) uint8, BGR.
        quality (bool): More boxes, some three times as many, three times as slow.

    Returns:
        np.ndarray: (R, 4) float32 as x1, y1, x2, y2 in px, x2 and y2 the last pixel
            of the box, all different, by falling area. OpenCV shuffles its boxes with
            C's rand(), which cannot be seeded from here; the set is always the same.

    Raises:
        ImportError: This OpenCV was built without its contrib modules.
    """
    check_opencv()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    if quality:
        search.switchToSelectiveSearchQuality()
    else:
        search.switchToSelectiveSearchFast()
    x, y, width, height = np.unique(search.process(), axis=0).T
    order = np.argsort(-width * height, kind='stable')
    boxes = np.stack([x, y, x + width - 1, y + height - 1], axis=1)
    return boxes[order].astype(np.float32)


def check_opencv() -> None:
    """Raise ImportError, with the remedy, where OpenCV has no Selective Search."""
    if not hasattr(cv2, 'ximgproc'):
        raise ImportError(
            f'OpenCV {cv2.__version__} has no Selective Search (cv2.ximgproc): install '
            'opencv-contrib-python-headless last, with `pip install --force-reinstall '
            '--no-deps opencv-contrib-python-headless`.'
        )


def search_images(
    images: dict[str, Path],
    folder: str | os.PathLike,
    quality: bool = False,
    workers: int | None = None,
    progress: Callable[..., Iterable] = lambda items, **counts: items,
) -> int:
    """Run `selective_search` on many images in parallel, resumably.

    Args:
        images (dict[str, Path]): Image files by image id.
        folder (str | Path): Gets `<image id>.npy`, boxes (R, 4), for each. What is
            there already, and is not older than its image, stays.
        quality (bool): As in `selective_search`.
        workers (int, optional): Processes; all cores by default. Their number does
            not change the boxes.
        progress: Wraps an iterable to show how far it is, and takes `total` and
            `initial`, as tqdm does.

    Returns:
        int: How many images were done before.

    Raises:
        ValueError: An image cannot be read.
        ImportError: As in `selective_search`.
    """
    check_opencv()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = {folder / f'{img_id}.npy': image for img_id, image in images.items()}
    todo = {
        result: image
        for result, image in results.items()
        if not _is_done(result, image)
    }
    done_before = len(images) - len(todo)
    if not todo:
        return done_before
    with _workers(workers) as pool:
        jobs = [pool.submit(_search_file, *job, quality) for job in todo.items()]
        try:
            for job in progress(
                as_completed(jobs), total=len(images), initial=done_before
            ):
                job.result()
        except BaseException:  # a broken image or Ctrl-C: finish what is running
            pool.shutdown(cancel_futures=True)
            raise
    return done_before


def search_in_order(
    images: Iterable[str | os.PathLike], workers: int | None = None
) -> Iterator[np.ndarray | None]:
    """Run `selective_search` on images in parallel, ahead of who uses the boxes.

    Args:
        images: Image files.
        workers: As in `search_images`.

    Yields:
        For each image, in order, boxes as `selective_search` returns them, or None of
        a file that cannot be read as an image.

    Raises:
        ImportError: As in `selective_search`.
    """
    check_opencv()
    with _workers(workers) as pool:
        waiting, jobs = iter(images), deque()
        try:
            while True:
                # No further ahead: boxes of a long video would fill the memory.
                for image in islice(waiting, AHEAD - len(jobs)):
                    jobs.append(pool.submit(_search_if_readable, image))
                if not jobs:
                    return
                yield jobs.popleft().result()
        finally:  # whoever uses the boxes may end early
            pool.shutdown(cancel_futures=True)


def _workers(number: int | None = None) -> ProcessPoolExecutor:
    # A plain fork of a process in which OpenCV has started its threads hangs.
    context = multiprocessing.get_context('forkserver')
    # The main module as well: each worker would import all that a command needs, for
    # seconds, before it could notice that its parent was killed.
    context.set_forkserver_preload(['__main__', __name__])
    return ProcessPoolExecutor(number, context, _start_worker)


def _is_done(result: Path, image: Path) -> bool:
    return result.exists() and result.stat().st_mtime >= image.stat().st_mtime


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    cv2.setNumThreads(1)  # the cores are taken by the other workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent leaves no worker behind: here it is the end of a pipe that tells
    (PR_SET_PDEATHSIG would watch the fork server, which such a worker keeps alive)."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)


def _search_if_readable(image_file: str | os.PathLike) -> np.ndarray | None:
    image = read_image(image_file)
    return None if image is None else selective_search(image)


def _search_file(result: Path, image_file: Path, quality: bool) -> None:
    image = read_image(image_file)
    if image is None:
        raise ValueError(
            f'{image_file} cannot be read as an image: replace or remove it.'
        )
    with whole_file(result) as partial:
        np.save(partial, selective_search(image, quality))
