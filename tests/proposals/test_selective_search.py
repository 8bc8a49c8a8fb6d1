import os
import struct
import time
import zlib

import cv2
import numpy as np
import pytest

from mmdet_ohem.proposals.selective_search import (
    search_images,
    search_in_order,
    selective_search,
)


def picture(seed, width=120, height=90):
    """Three coloured rectangles on a noisy ground."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, (height, width, 3)).astype(np.uint8)
    for _ in range(3):
        x, y = rng.integers(0, [width - 40, height - 40])
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        cv2.rectangle(image, (int(x), int(y)), (int(x) + 30, int(y) + 24), colour, -1)
    return image


@pytest.fixture
def images(tmp_path):
    (tmp_path / 'images').mkdir()
    paths = {}
    for seed in range(4):
        paths[f'image{seed}'] = tmp_path / 'images' / f'image{seed}.png'
        cv2.imwrite(str(paths[f'image{seed}']), picture(seed))
    return paths


def read_all(folder):
    return {path.stem: np.load(path).tolist() for path in folder.glob('*.npy')}


def test_a_rectangle_is_found_to_the_pixel():
    image = np.full((100, 120, 3), 30, dtype=np.uint8)
    image[20:60, 30:80] = (0, 0, 255)  # columns 30 to 79, rows 20 to 59
    boxes = selective_search(image)
    assert boxes.dtype == np.float32
    # Blurring before the segmentation moves an edge by a pixel.
    assert (np.abs(boxes - [30, 20, 79, 59]).max(axis=1) <= 1).any()
    assert [0, 0, 119, 99] in boxes.tolist()  # the whole image, x2 its last column


def test_boxes_differ_lie_in_the_image_and_fall_in_area():
    boxes = selective_search(picture(0))
    assert len(np.unique(boxes, axis=0)) == len(boxes) > 5
    assert boxes.min() >= 0 and (boxes[:, 2:] <= [119, 89]).all()
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    assert (np.diff(areas) <= 0).all()


def test_quality_mode_gives_more_boxes():
    assert len(selective_search(picture(0), True)) > len(selective_search(picture(0)))


@pytest.mark.parametrize('shape', [(1, 1), (1, 50), (5, 5)])
def test_tiny_images_give_a_box(shape):
    boxes = selective_search(np.zeros((*shape, 3), dtype=np.uint8))
    assert boxes.tolist() == [[0, 0, shape[1] - 1, shape[0] - 1]]


def test_same_boxes_whatever_the_order_and_the_number_of_workers(images, tmp_path):
    direct = {name: selective_search(picture(i)) for i, name in enumerate(images)}
    for workers, order in ((1, images), (3, reversed(images))):
        folder = tmp_path / f'{workers}'
        search_images({name: images[name] for name in order}, folder, workers=workers)
        found = read_all(folder)
        assert found == {name: boxes.tolist() for name, boxes in direct.items()}


def test_what_is_done_is_not_done_again(images, tmp_path):
    search_images(dict(list(images.items())[:3]), tmp_path / 'out')
    marks = {'image0': 7, 'image1': 8}
    for name, value in marks.items():
        np.save(tmp_path / 'out' / f'{name}.npy', np.full((1, 4), value))
    later = time.time() + 10
    os.utime(images['image1'], (later, later))  # its boxes are out of date now
    assert search_images(images, tmp_path / 'out') == 2
    found = read_all(tmp_path / 'out')
    assert found['image0'] == [[7] * 4]
    assert found['image1'] == selective_search(picture(1)).tolist()


def test_images_in_order_and_a_broken_one_among_them(images, tmp_path):
    broken, huge = tmp_path / 'broken.png', tmp_path / 'huge.png'
    broken.write_text('no image')
    first, *others = images.values()
    content = bytearray(first.read_bytes())
    content[16:24] = struct.pack('>II', 100_000, 100_000)  # width and height in IHDR
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    huge.write_bytes(content)
    found = list(search_in_order([first, broken, huge, *others]))
    assert found.pop(1) is None and found.pop(1) is None
    for boxes, path in zip(found, images.values(), strict=True):
        assert (boxes == selective_search(cv2.imread(str(path)))).all()


def test_broken_image_is_named_and_the_others_stay(images, tmp_path):
    images['broken'] = tmp_path / 'images' / 'broken.jpg'
    images['broken'].write_text('text')
    with pytest.raises(ValueError, match='broken.jpg cannot be read'):
        search_images(images, tmp_path / 'out', workers=1)
    assert set(read_all(tmp_path / 'out')) == set(images) - {'broken'}


def test_opencv_without_contrib_says_what_to_install(monkeypatch):
    monkeypatch.delattr(cv2, 'ximgproc')
    with pytest.raises(ImportError, match='opencv-contrib-python-headless last'):
        selective_search(picture(0))
