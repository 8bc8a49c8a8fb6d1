import numpy as np
import torch

from mmdet_ohem.pictures import BACKGROUND, FOREGROUND, Boxes, draw_boxes, montage


def test_boxes_are_drawn_where_they_are_in_their_colours():
    image = np.full((240, 320, 3), 255, np.uint8)
    picture = draw_boxes(
        image,
        [
            Boxes(torch.tensor([[10.0, 20, 100, 120]]), BACKGROUND),
            Boxes(torch.tensor([[200.0, 50, 300, 200]]), FOREGROUND, ['']),
            Boxes(torch.zeros(0, 4), (0, 0, 0), [], torch.zeros(0)),
        ],
    )
    assert picture.shape == (480, 640, 3)  # twice as large
    for colour, (x1, y1, x2, y2) in (
        (BACKGROUND, (20, 40, 200, 240)),
        (FOREGROUND, (400, 100, 600, 400)),
    ):
        near = np.abs(picture.astype(int) - colour).max(axis=2) < 80
        rows, columns = near.nonzero()
        assert np.abs(rows.min() - y1) <= 3 and np.abs(rows.max() - y2) <= 3
        assert np.abs(columns.min() - x1) <= 3 and np.abs(columns.max() - x2) <= 3


def test_a_montage_holds_pictures_of_any_size():
    pictures = [np.full((h, w, 3), i) for i, (h, w) in enumerate([(2, 3), (4, 2)] * 2)]
    sheet = montage(pictures, columns=3)
    assert sheet.shape == (8, 9, 3)
    assert (sheet[:2, :3] == 0).all() and (sheet[:4, 3:5] == 1).all()
    assert (sheet[4:, :2] == 3).all() and (sheet[4:, 3:] == 255).all()


def test_a_hard_roi_is_drawn_stronger_than_an_easy_one():
    image = np.full((240, 320, 3), 255, np.uint8)
    boxes = torch.tensor([[10.0, 20, 100, 120], [200.0, 50, 300, 200]])
    group = Boxes(boxes, FOREGROUND, strengths=torch.tensor([0.0, 1.0]))
    ink = 255 - draw_boxes(image, [group]).astype(int)
    assert 0 < ink[:, :320].max() < 0.5 * ink[:, 320:].max()
