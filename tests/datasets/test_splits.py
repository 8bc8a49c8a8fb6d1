"""Near-duplicates of drawn images, made by plain changes of pixels."""

import cv2
import numpy as np
import pytest

from mmdet_ohem.datasets import draw_image, draw_split, hash_images, near_duplicates

COPIES = {
    'brighter': lambda image: np.clip(1.2 * image + 10, 0, 255),
    'mirrored': lambda image: image[:, ::-1],
    'turned': lambda image: np.rot90(image, 3),
    'smaller': lambda image: cv2.resize(image, (200, 150)),
    'blurred': lambda image: cv2.GaussianBlur(image, (5, 5), 0),
    'noisy': lambda image: np.clip(
        image + np.random.default_rng(0).normal(0, 10, image.shape), 0, 255
    ),
}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Eight different images, and then a copy of the first few."""
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    images = [draw_image(rng)[0] for _ in range(8)]
    images += [
        change(image) for change, image in zip(COPIES.values(), images, strict=False)
    ]
    paths = [folder / f'{i}.png' for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image.astype(np.uint8))
    return paths


def test_changed_copies_are_found_and_other_images_are_not(files):
    hashes = hash_images(files)
    found = near_duplicates(hashes[:8], hashes[8:])
    assert found == [(i, i) for i in range(len(COPIES))]
    assert near_duplicates(hashes[:8], hashes[:8]) == [(i, i) for i in range(8)]


def test_a_draw_keeps_copies_together_and_repeats_with_its_seed(files):
    hashes = hash_images(files)
    splits = set()
    for seed in range(10):
        train, test = draw_split(hashes, 0.3, seed)
        assert sorted(train + test) == list(range(len(files)))
        assert not near_duplicates(hashes[train], hashes[test])
        assert 1 <= len(test) <= round(0.3 * len(files))
        assert (train, test) == draw_split(hashes, 0.3, seed)
        splits.add(tuple(test))
    assert len(splits) > 3


def test_a_test_set_that_cannot_be_drawn_is_refused(files):
    copies = hash_images([files[0], files[8]])
    with pytest.raises(ValueError, match='0.5 of 2 images cannot be drawn'):
        draw_split(copies, 0.5, 0)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / 'a.jpg').write_text('no image')
    with pytest.raises(ValueError, match='a.jpg cannot be read'):
        hash_images([tmp_path / 'a.jpg'])
