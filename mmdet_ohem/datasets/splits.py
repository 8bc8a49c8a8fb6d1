"""Training and test images: near-duplicates between them, and a draw that has none.

Letters for shapes:
    N: images, V: views of an image (its 8 turns and mirror images)
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

from mmdet_ohem.datasets.images import read_image

# OpenCV's block mean hash (Yang, Gu and Niu, 2006) is 256 bits, of which two different
# images have about half in common. On 150 images of BCCD and 150 of the demo's data the
# closest different images are 71 bits apart, in any view; a copy of another
# brightness, size or sharpness, or with noise, is at most 8 bits away, and a copy that
# lost a tenth of its width about 35. The closest pair of BCCD, the same cells
# photographed twice, is 20 bits apart.
MAX_BITS = 32
HASH_BITS = 256
HASH_SIZE = 256  # px; the hash shrinks every image to this
BLOCK = 1024  # rows that are compared at once


def hash_images(
    files: list[Path], progress: Callable[[Iterable], Iterable] = iter
) -> np.ndarray:
    """(N, V, 32) uint8, 256 bits of each view of each image; the first view is the
    image itself.

    Raises:
        ImportError: this OpenCV was built without its contrib modules.
        ValueError: an image cannot be read.
    """
    if not hasattr(cv2, 'img_hash'):
        raise ImportError(
            f'OpenCV {cv2.__version__} has no image hashes (cv2.img_hash): install '
            'opencv-contrib-python-headless last.'
        )
    block_mean = cv2.img_hash.BlockMeanHash_create()
    hashes = np.empty((len(files), 8, 32), np.uint8)
    for i, file in enumerate(progress(files)):
        image = read_image(file)
        if image is None:
            raise ValueError(
                f'{file} cannot be read as an image: replace or remove it.'
            )
        image = cv2.resize(
            image, (HASH_SIZE, HASH_SIZE), interpolation=cv2.INTER_LINEAR_EXACT
        )
        views = [
            np.rot90(side, turns)
            for side in (image, image[:, ::-1])
            for turns in range(4)
        ]
        for j, view in enumerate(views):
            hashes[i, j] = block_mean.compute(np.ascontiguousarray(view))[0]
    return hashes


def near_duplicates(some: np.ndarray, others: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (i, j) of images some[i] and others[j] that are nearly the same, turned
    and mirrored ones too.

    Args:
        some, others: of `hash_images`.
    """
    pairs = []
    for start in range(0, len(some), BLOCK):
        plain = _signs(some[start : start + BLOCK, 0])
        for first in range(0, len(others), BLOCK):
            # (N, V, M): the bits in common less those that differ.
            common = _signs(others[first : first + BLOCK]) @ plain.T
            is_near = (common >= HASH_BITS - 2 * MAX_BITS).any(axis=1)
            pairs += [(start + i, first + j) for j, i in np.argwhere(is_near).tolist()]
    return pairs


def _signs(hashes: np.ndarray) -> np.ndarray:
    """The bits of hashes as 1 and -1, for products."""
    return 2 * np.unpackbits(hashes, axis=-1).astype(np.float32) - 1


def draw_split(
    hashes: np.ndarray, fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Draw the test images; near-duplicates stay together.

    Args:
        hashes: of `hash_images`.
        fraction: of the images that go to the test set.
        seed: of the draw.

    Returns:
        Indices of the training and of the test images, rising.

    Raises:
        ValueError: one of the two would be empty.
    """
    group = list(range(len(hashes)))  # the lowest index of the near-duplicates

    def first(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for i, j in near_duplicates(hashes, hashes):
        low, high = sorted((first(i), first(j)))
        group[high] = low
    members = {}
    for i in range(len(hashes)):
        members.setdefault(first(i), []).append(i)
    groups = list(members.values())
    wanted = round(fraction * len(hashes))
    test = []
    for place in np.random.default_rng(seed).permutation(len(groups)):
        if len(test) + len(groups[place]) <= wanted:
            test += groups[place]
    train = sorted(set(range(len(hashes))) - set(test))
    if not test or not train:
        raise ValueError(
            f'A test set of {fraction:g} of {len(hashes)} images cannot be drawn: '
            'there are too few images that are no near-duplicates of each other.'
        )
    return train, sorted(test)
