"""FROC against a slow plain computation, and by hand."""

import numpy as np
import pytest
from support.plain_froc import plain_curve, plain_sensitivity

from mmdet_ohem.evaluation.froc import (
    DUPLICATE,
    FALSE,
    HIT,
    NEITHER,
    RATES,
    Judged,
    froc_curve,
    judge,
)

NUM_CLASSES = 3


def draw_boxes(rng, count: int) -> np.ndarray:
    """(count, 4) on a coarse grid, so that overlaps of exactly 0.5 occur."""
    corners = 4 * rng.integers(0, 8, (count, 2))
    return np.hstack([corners, corners + 4 * rng.integers(1, 6, (count, 2))])


def draw_image(rng) -> dict:
    """Boxes, and detections near them or anywhere, with few distinct scores; one image
    in three is empty."""
    num_objects, num_ignored = rng.integers(0, 5), rng.integers(0, 3)
    if rng.random() < 1 / 3:
        num_objects = num_ignored = 0
    objects, ignored = draw_boxes(rng, num_objects), draw_boxes(rng, num_ignored)
    anywhere = draw_boxes(rng, rng.integers(0, 6))
    near = np.repeat(np.vstack([objects, ignored]), 2, axis=0)
    near = near + rng.integers(-1, 2, near.shape)
    boxes = np.vstack([near, anywhere]).astype(float)
    return dict(
        boxes=boxes,
        scores=rng.choice([0.1, 0.3, 0.5, 0.5, 0.9], len(boxes)).astype(np.float32),
        labels=rng.integers(0, NUM_CLASSES, len(boxes)),
        objects=objects,
        object_labels=rng.integers(0, NUM_CLASSES, num_objects),
        ignored=ignored,
        ignored_labels=rng.integers(0, NUM_CLASSES, num_ignored),
    )


def judged(image: dict, **options) -> Judged:
    counts, ignored = (
        np.bincount(image[key], minlength=NUM_CLASSES)
        for key in ('object_labels', 'ignored_labels')
    )
    return Judged(
        np.zeros(len(image['boxes']), int),
        image['labels'],
        image['scores'],
        judge(**image, **options),
        counts[None],
        (counts + ignored == 0)[None],
    )


@pytest.mark.parametrize('spares_duplicates', [False, True])
def test_the_curve_equals_the_plain_computation(spares_duplicates):
    seed = np.random.SeedSequence().entropy
    print(f'seed {seed}')
    rng = np.random.default_rng(seed)
    images = [draw_image(rng) for _ in range(40)]
    pool = Judged.join([judged(image) for image in images])
    for label in (None, *range(NUM_CLASSES)):
        expected = plain_curve(images, label, spares_duplicates)
        of = pool if label is None else pool.of_class(label)
        curve = froc_curve(
            of.hit_scores(),
            of.false_scores(spares_duplicates),
            of.num_objects.sum(),
            len(images),
        )
        points = zip(curve.fp_per_image, curve.sensitivity, strict=True)
        found = dict(zip(curve.scores, points, strict=True))
        thresholds = [np.inf, *sorted({s for i in images for s in i['scores']})[::-1]]
        for threshold, point in zip(thresholds, expected, strict=True):
            # A score that this class lacks is no point of its curve.
            if threshold in found:
                assert found[threshold] == pytest.approx(point)
        assert curve.sensitivity_at(RATES) == pytest.approx(
            [plain_sensitivity(expected, rate) for rate in RATES]
        )
        for recall in (0.1, 0.5, 0.9):
            reaching = [fp for fp, sensitivity in expected if sensitivity >= recall]
            fp = reaching[0] if reaching else np.nan
            assert curve.at_recall(recall)[0] == pytest.approx(fp, nan_ok=True)


def test_false_alarms_equal_the_plain_computation():
    seed = np.random.SeedSequence().entropy
    print(f'seed {seed}')
    rng = np.random.default_rng(seed)
    images = [draw_image(rng) for _ in range(60)]
    pool = Judged.join([judged(image) for image in images])
    for label in (None, *range(NUM_CLASSES)):
        num_empty = num_alarms = 0
        for image in images:
            there = [*image['object_labels'], *image['ignored_labels']]
            if label in there or (label is None and there):
                continue
            num_empty += 1
            num_alarms += any(
                score >= 0.5 and (label is None or own == label)
                for score, own in zip(image['scores'], image['labels'], strict=True)
            )
        of = pool if label is None else pool.of_class(label)
        assert of.false_alarms(0.5) == (num_empty, num_alarms)
        assert num_alarms > 0


def test_the_order_of_equal_scores_changes_nothing():
    seed = np.random.SeedSequence().entropy
    print(f'seed {seed}')
    rng = np.random.default_rng(seed)
    for _ in range(200):
        image = draw_image(rng)
        image['scores'] = np.full_like(image['scores'], 0.5)
        order = rng.permutation(len(image['boxes']))
        other = dict(image)
        for key in ('boxes', 'scores', 'labels'):
            other[key] = image[key][order]
        one, two = judged(image), judged(other)
        for kind in (HIT, DUPLICATE, FALSE, NEITHER):
            assert (one.kinds == kind).sum() == (two.kinds == kind).sum()


# ------------------------------------------------------------------------------ by hand


def of_one_class(boxes, scores, objects=(), ignored=(), **options) -> list[int]:
    kinds = judge(
        np.array(boxes, float).reshape(-1, 4),
        np.array(scores),
        np.zeros(len(boxes), int),
        np.array(objects, float).reshape(-1, 4),
        np.zeros(len(objects), int),
        np.array(ignored, float).reshape(-1, 4),
        np.zeros(len(ignored), int),
        **options,
    )
    return kinds.tolist()


def test_an_iou_of_exactly_the_threshold_is_a_hit():
    half, less = (0, 0, 10, 5), (0, 0, 10, 4.9)
    assert of_one_class([half], [0.5], [(0, 0, 10, 10)]) == [HIT]
    assert of_one_class([less], [0.5], [(0, 0, 10, 10)]) == [FALSE]
    assert of_one_class([less], [0.5], [(0, 0, 10, 10)], iou_thr=0.4) == [HIT]


def test_the_highest_score_is_the_hit_whatever_comes_first():
    box = (0, 0, 10, 10)
    kinds = of_one_class([box, box, box], [0.2, 0.9, 0.3], [box])
    assert kinds == [DUPLICATE, HIT, DUPLICATE]


def test_a_detection_belongs_to_the_object_that_it_overlaps_most():
    """As in VOC the second object stays missed, though the second detection would do
    for it."""
    objects = [(0, 0, 10, 10), (2, 0, 12, 10)]
    kinds = of_one_class([(0, 0, 10, 10), (0.5, 0, 10.5, 10)], [0.9, 0.8], objects)
    assert kinds == [HIT, DUPLICATE]


def test_what_lies_in_a_crowd_counts_neither_way():
    crowd, person = (0, 0, 100, 100), (10, 10, 20, 20)
    in_it, half_in_it, less = (50, 50, 60, 60), (95, 0, 105, 9), (96, 0, 106, 9)
    boxes = [in_it, half_in_it, less, person, person]
    kinds = of_one_class(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], [person], [crowd])
    assert kinds == [NEITHER, NEITHER, FALSE, HIT, NEITHER]


def test_another_class_is_no_excuse():
    box = np.array([[0.0, 0, 10, 10]])
    none = np.zeros((0, 4))
    no_labels = np.zeros(0, int)
    one, two = np.array([0]), np.array([1])
    score = np.array([0.5])
    assert judge(box, score, two, box, one, none, no_labels) == [FALSE]
    assert judge(box, score, two, none, no_labels, box, one) == [FALSE]


def test_boxes_without_area_are_found_by_nothing():
    point = (5, 5, 5, 5)
    assert of_one_class([point, (0, 0, 9, 9)], [0.5, 0.5], [point]) == [FALSE, FALSE]
    assert of_one_class([point], [0.5], [], [(0, 0, 9, 9)]) == [FALSE]


def test_a_curve_worked_out_by_hand():
    """Four objects in two images; three are found, at 0.9, 0.8 and 0.8, and there are
    false positives at 0.8, 0.5 and 0.5."""
    curve = froc_curve(np.array([0.8, 0.9, 0.8]), np.array([0.5, 0.8, 0.5]), 4, 2)
    assert curve.scores.tolist() == [np.inf, 0.9, 0.8, 0.5]
    assert curve.sensitivity.tolist() == [0, 0.25, 0.75, 0.75]
    assert curve.fp_per_image.tolist() == [0, 0, 0.5, 1.5]
    # From (0, 0.25) a straight line leads to (0.5, 0.75).
    assert curve.sensitivity_at().tolist() == [0.375, 0.5, 0.75, 0.75, 0.75, 0.75, 0.75]
    assert curve.highest_rate == 1.5
    assert curve.at_recall(0.7) == (0.5, 0.8)
    assert curve.at_recall(0.25) == (0.0, 0.9)
    assert np.isnan(curve.at_recall(0.8)).all()


def test_a_detector_that_finds_nothing_or_has_nothing_to_find():
    none = np.zeros(0)
    curve = froc_curve(none, none, 4, 2)
    assert curve.sensitivity_at().tolist() == [0] * 7 and curve.highest_rate == 0
    curve = froc_curve(none, np.array([0.5]), 0, 2)
    assert np.isnan(curve.sensitivity_at()).all() and curve.highest_rate == 0.5
    assert np.isnan(curve.at_recall(0.0)).all()
