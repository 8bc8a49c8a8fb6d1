"""Recall of proposals against a plain loop over boxes."""

from pathlib import Path

import numpy as np
import pytest

from mmdet_ohem.datasets import LabelledImage
from mmdet_ohem.proposals import measure_recall


def plain_iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return common / (sum(areas) - common)


def random_boxes(rng, count: int) -> np.ndarray:
    corners = rng.uniform(0, 60, (count, 2))
    return np.hstack([corners, corners + rng.uniform(5, 40, (count, 2))])


def labelled(boxes: np.ndarray, ignored=None) -> LabelledImage:
    ignored = np.zeros(len(boxes), bool) if ignored is None else ignored
    return LabelledImage(Path('a.jpg'), (100, 100), boxes, ['x'] * len(boxes), ignored)


def test_recall_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    records, best = [], []
    for num_objects, num_proposals in ((5, 40), (3, 0), (0, 10), (8, 90)):
        objects = random_boxes(rng, num_objects)
        proposals = random_boxes(rng, num_proposals)
        records.append((labelled(objects), proposals))
        best += [
            max((plain_iou(o, p) for p in proposals), default=0.0) for o in objects
        ]
    recall = measure_recall(records)
    best = np.array(best)
    np.testing.assert_allclose(recall.best_ious, best, atol=1e-5)
    assert recall.at(0.5) == (best >= 0.5).mean()
    assert f'{(best >= 0.7).mean():.2f} at IoU 0.7' in str(recall)
    assert '35 proposals an image (16 objects, 4 images)' in str(recall)


def test_what_is_ignored_or_has_no_area_does_not_count():
    objects = np.array([[0, 0, 20, 20], [30, 30, 60, 60], [5, 5, 5, 9.0]])
    image = labelled(objects, np.array([False, True, False]))
    recall = measure_recall([(image, np.array([[0, 0, 20, 10.0]]))])
    assert recall.best_ious.tolist() == [0.5]
    assert recall.at(0.5) == 1 and recall.at(0.7) == 0 and not recall.is_low


def test_images_without_objects_are_refused():
    with pytest.raises(ValueError, match='no recall'):
        measure_recall([(labelled(np.zeros((0, 4))), np.zeros((0, 4)))])
