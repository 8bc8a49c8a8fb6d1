"""Where labels go, on drawn boxes."""

import numpy as np
import pytest

from mmdet_ohem.visualization.labels import leader, place_labels, text_size

SIZE = (640, 480)


def common_area(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


@pytest.mark.parametrize(
    'count, largest, needs_margin', [(25, 40, False), (120, 40, None), (60, 300, True)]
)
def test_labels_hide_no_box_and_no_other_label(count, largest, needs_margin):
    rng = np.random.default_rng(count)
    corners = rng.uniform(0, (600, 440), (count, 2))
    boxes = np.hstack([corners, corners + rng.uniform(10, largest, (count, 2))])
    boxes = boxes.clip(0, (640, 480, 640, 480))
    sizes = np.tile(text_size('cell 0.98', 12), (count, 1))
    places, margin = place_labels(boxes, sizes, boxes, SIZE)
    assert needs_margin in (None, margin > 0)
    np.testing.assert_allclose(places[:, 2:] - places[:, :2], sizes)
    assert (places[:, :2] >= 0).all()
    assert (places[:, 2] <= 640 + margin).all() and (places[:, 3] <= 480).all()
    for i, place in enumerate(places):
        for box in boxes:
            area = (box[2] - box[0]) * (box[3] - box[1])
            assert common_area(place, box) <= 0.051 * area
        for other in places[:i]:
            assert common_area(place, other) == 0


def test_a_label_stays_beside_a_box_that_is_alone():
    box = np.array([[300.0, 200, 320, 215]])
    places, margin = place_labels(box, np.array([[50.0, 16]]), box, SIZE)
    assert margin == 0 and places.tolist() == [[300, 184, 350, 200]]
    assert leader(box[0], places[0]) is None


def test_a_line_leads_from_a_label_to_its_box():
    box, place = np.array([10.0, 20, 30, 40]), np.array([60.0, 90, 100, 105])
    assert leader(box, place).tolist() == [[60, 90], [30, 40]]


def test_a_picture_without_labels_has_none():
    nothing = np.zeros((0, 4))
    places, margin = place_labels(nothing, np.zeros((0, 2)), nothing, SIZE)
    assert places.shape == (0, 4) and margin == 0
