"""Selective Search (Uijlings et al., IJCV 2013) through OpenCV's contrib modules."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

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
) -> None:
    """Run `selective_search` on many images in parallel, resumably.

    Args:
        images (dict[str, Path]): Image files by image id.
        folder (str | Path): Gets `<image id>.npy`, boxes (R, 4), for each. What is
            there already, and is not older than its image, stays.
        quality (bool): As in `selective_search`.
        workers (int, optional): Processes; all cores by default. Their number does
            not change the boxes.

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
    if len(todo) < len(images):
        print(f'{len(images) - len(todo)} of {len(images)} images were done before.')
    if not todo:
        return
    with _workers(workers) as pool:
        jobs = [pool.submit(_search_file, *job, quality) for job in todo.items()]
        done = as_completed(jobs)
        try:
            for job in tqdm(
                done, 'Selective Search', len(jobs), unit='image', mininterval=1
            ):
                job.result()
        except BaseException:  # a broken image or Ctrl-C: finish what is running
            pool.shutdown(cancel_futures=True)
            raise


def search_in_order(images: list[Path]) -> Iterator[np.ndarray | None]:
    """Run `selective_search` on images in parallel, ahead of who uses the boxes.

    Yields:
        For each image, in order, boxes as `selective_search` returns them, or None of
        a file that cannot be read as an image.

    Raises:
        ImportError: As in `selective_search`.
    """
    check_opencv()
    with _workers() as pool:
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
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(number, context, _start_worker)


def _is_done(result: Path, image: Path) -> bool:
    return result.exists() and result.stat().st_mtime >= image.stat().st_mtime


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    cv2.setNumThreads(1)  # the cores are taken by the other workers


def _search_if_readable(image_file: Path) -> np.ndarray | None:
    try:
        image = cv2.imread(str(image_file), cv2.IMREAD_COLOR)
    except cv2.error:  # a header that claims more pixels than OpenCV takes
        return None
    return None if image is None else selective_search(image)


def _search_file(result: Path, image_file: Path, quality: bool) -> None:
    image = cv2.imread(str(image_file), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(
            f'{image_file} cannot be read as an image: replace or remove it.'
        )
    with whole_file(result) as partial:
        np.save(partial, selective_search(image, quality))
