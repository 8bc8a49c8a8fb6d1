import hashlib
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest

from mmdet_ohem.datasets.lookalikes import (
    CLASSES,
    draw_image,
    generate,
    generate_empty,
)


def digest(root) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (('a', 3), ('b', 3), ('c', 4)):
        generate(tmp_path / name, num_train=2, num_test=1, seed=seed)
    assert digest(tmp_path / 'a') == digest(tmp_path / 'b')
    assert digest(tmp_path / 'a') != digest(tmp_path / 'c')


def test_the_folder_is_in_voc_layout(tmp_path):
    root = tmp_path / 'lookalikes'
    generate(root, num_train=3, num_test=2, seed=0)
    train = (root / 'ImageSets/Main/train.txt').read_text().split()
    test = (root / 'ImageSets/Main/test.txt').read_text().split()
    assert len(train) == 3 and len(test) == 2 and not set(train) & set(test)
    for image_id in train + test:
        image = cv2.imread(str(root / 'JPEGImages' / f'{image_id}.jpg'))
        assert image.shape == (300, 400, 3)
        annotation = ET.parse(root / 'Annotations' / f'{image_id}.xml').getroot()
        assert annotation.findtext('size/width') == '400'
        objects = annotation.findall('object')
        assert 1 <= len(objects) <= 2
        for node in objects:
            assert node.findtext('name') in CLASSES
            x1, y1, x2, y2 = (
                int(node.findtext(f'bndbox/{key}'))
                for key in ('xmin', 'ymin', 'xmax', 'ymax')
            )
            assert 1 <= x1 < x2 <= 400 and 1 <= y1 < y2 <= 300
            assert min(x2 - x1, y2 - y1) > 15


def test_empty_pictures_have_blanks_and_no_part_with_a_hole(tmp_path, monkeypatch):
    drawn = []

    def draw(canvas, name, place, drilled, rng):
        drawn.append(drilled)

    monkeypatch.setattr('mmdet_ohem.datasets.lookalikes._draw_part', draw)
    generate_empty(tmp_path / 'pool', num=4, seed=1)
    names = sorted(path.name for path in (tmp_path / 'pool').iterdir())
    assert names == [f'empty_000{i}.jpg' for i in range(4)]
    assert 4 * 2 <= len(drawn) <= 4 * 5 and not any(drawn)


def test_an_object_shows_the_table_through_its_hole_and_a_box_fits_its_edge():
    rng = np.random.default_rng(5)
    image, objects = draw_image(rng)
    for _, (x1, y1, x2, y2) in objects:
        centre = image[(y1 + y2) // 2, (x1 + x2) // 2].astype(int)
        # Between the hole's edge (0.42 of the radius) and the gear's root (0.62).
        body = image[(y1 + y2) // 2, int((x1 + x2) / 2 + 0.26 * (x2 - x1))].astype(int)
        assert np.abs(centre - body).max() > 10


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('keep')
    with pytest.raises(FileExistsError, match='exists'):
        generate(tmp_path, num_train=1, num_test=1)
    assert (tmp_path / 'mine.txt').read_text() == 'keep'
