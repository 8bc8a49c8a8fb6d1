import cv2
import numpy as np
from support.rotated_boxes import polygon_iou

from mmdet_ohem.datasets import ROTATED_CLASSES, generate_rotated
from mmdet_ohem.datasets.rotated_lookalikes import _draw_part


def content(root) -> dict[str, bytes]:
    files = (path for path in root.rglob('*') if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_the_folder_is_in_the_layout_of_dota(tmp_path):
    for name in ('a', 'b'):
        generate_rotated(tmp_path / name, num_train=3, num_test=1, seed=2)
    assert content(tmp_path / 'a') == content(tmp_path / 'b')
    for split, num in (('train', 3), ('val', 1), ('test', 1)):
        folder = tmp_path / 'a' / split
        names = sorted(path.stem for path in (folder / 'images').glob('*.png'))
        assert names == sorted(path.stem for path in (folder / 'annfiles').iterdir())
        assert len(names) == num
        for name in names:
            image = cv2.imread(str(folder / 'images' / f'{name}.png'))
            assert image.shape == (300, 400, 3)
            lines = (folder / 'annfiles' / f'{name}.txt').read_text().splitlines()
            assert 1 <= len(lines) <= 2
            for line in lines:
                *corners, kind, difficulty = line.split()
                assert kind in ROTATED_CLASSES and difficulty == '0'
                corners = np.float64(corners).reshape(4, 2)
                assert (corners > 0).all() and (corners < (400, 300)).all()
                sides = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
                assert np.allclose(sides[:2], sides[2:], atol=0.2)  # a rectangle
                assert sides[0] > 2 * sides[1] > 20


def test_a_box_fits_its_part_and_the_holes_show_the_table():
    rng = np.random.default_rng(0)
    for name in ROTATED_CLASSES * 3:
        canvas = np.full((1200, 1600, 3), 250, np.uint8)
        corners = _draw_part(canvas, name, (200, 150, 40), True, rng)
        rows, columns = (canvas != 250).any(axis=2).nonzero()
        points = np.stack([columns, rows], axis=1).astype(np.float32)
        fitted = cv2.boxPoints(cv2.minAreaRect(points)) / 4
        assert polygon_iou(corners.ravel(), fitted.ravel()) > 0.93, name
        assert polygon_iou(corners.ravel(), fitted.ravel()) < 1.001
        centre, along = corners.mean(axis=0), (corners[1] - corners[0]) / 2
        for place, is_hole in ((-0.45, True), (0, False), (0.45, True)):
            x, y = np.rint(4 * (centre + place * along)).astype(int)
            assert (canvas[y, x] == 250).all() == is_hole
