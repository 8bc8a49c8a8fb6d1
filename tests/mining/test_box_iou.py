"""Rotated boxes against polygons of Shapely, which knows nothing of rectangles."""

import math

import numpy as np
import pytest
import torch
from support.reference import select_hard_rois as plain_select_hard_rois
from support.rotated_boxes import polygon_ious, random_rotated_boxes

from mmdet_ohem.mining.box_iou import box_iou
from mmdet_ohem.mining.select import select_hard_rois

# The rounding to float32 of a number up to 1, and a hair for double precision.
TOLERANCE = 2**-25 + 1e-12


def near(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    """Other boxes, whose sides often lie on those of the given ones: most turned by
    half a turn or a quarter, which is the same box; some shorter, some slid along a
    side, some jittered, from a rounding of float32 to a fifth of the box."""
    other = boxes.astype(np.float64)
    count = len(boxes)
    angles = other[:, 4].copy()
    shorter = np.where(rng.random(count) < 0.3, rng.uniform(0.5, 1, count), 1)
    slid = np.where(rng.random(count) < 0.3, rng.uniform(-0.4, 0.4, count), 0)
    other[:, 0] += np.cos(angles) * slid * other[:, 2]
    other[:, 1] += np.sin(angles) * slid * other[:, 2]
    other[:, 2] *= shorter
    turns = rng.integers(4, size=count)
    other[:, 4] += turns * math.pi / 2
    quarter = turns % 2 == 1
    other[quarter, 2:4] = other[quarter, 3:1:-1]
    jitter = rng.choice([0, 0, 1e-7, 1e-5, 1e-3, 0.05, 0.2], count)[:, None]
    other[:, :2] += jitter * other[:, 2:4] * rng.normal(size=(count, 2))
    other[:, 2:4] *= np.exp(jitter * rng.normal(size=(count, 2)))
    other[:, 4:] += jitter * rng.normal(size=(count, 1))
    return other.astype(np.float32)


def test_the_iou_of_rotated_boxes_is_that_of_polygons():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        boxes = random_rotated_boxes(rng, 60, 90)
        boxes[:, 2:4] *= np.exp(rng.normal(size=(60, 2))).astype(np.float32)
        others = np.concatenate([random_rotated_boxes(rng, 20, 90), near(rng, boxes)])
        expected = polygon_ious(boxes, others)
        found = box_iou(torch.from_numpy(boxes), torch.from_numpy(others))
        assert found.dtype == torch.float32
        error = np.abs(found.double().numpy() - expected)
        assert error.max() <= TOLERANCE, f'seed {seed}: {error.max()}'


@pytest.mark.parametrize('least', [0.3, 0.7])
def test_pairs_that_cannot_overlap_enough_may_be_left_out(least):
    rng = np.random.default_rng(3)
    boxes = random_rotated_boxes(rng, 80, 60)
    others = torch.from_numpy(np.concatenate([near(rng, boxes), boxes[:20]]))
    boxes = torch.from_numpy(boxes)
    exact, rough = box_iou(boxes, others), box_iou(boxes, others, least)
    assert ((exact > least) == (rough > least)).all()
    assert ((rough == exact) | (rough == 0)).all()
    assert ((rough == 0) & (exact > 0)).sum() > 100  # some work is saved


def test_boxes_without_area_overlap_nothing():
    boxes = torch.tensor(
        [[5, 5, 4, 2, 0.3], [5, 5, 0, 2, 0.3], [5, 5, 4, 0, 0.3], [5, 5, -4, -2, 0.3]]
    )
    iou = box_iou(boxes, boxes)
    assert iou[0, 0] == 1 and iou.sum() == 1


def test_boxes_of_any_size_and_place_are_taken_alike():
    rng = np.random.default_rng(5)
    boxes = random_rotated_boxes(rng, 60, 60)
    boxes[:, :4] = boxes[:, :4].round()  # to be moved without a rounding
    others = near(rng, boxes)
    others[:, :2] = others[:, :2].round()
    boxes, others = torch.from_numpy(boxes), torch.from_numpy(others)
    expected = box_iou(boxes, others)
    for scale in (2.0**-30, 2.0**20):
        factor = torch.tensor([scale] * 4 + [1])
        assert torch.equal(box_iou(boxes * factor, others * factor), expected)
    shift = torch.tensor([2.0**14, -(2.0**13), 0, 0, 0])
    assert torch.equal(box_iou(boxes + shift, others + shift), expected)


def random_case(rng: np.random.Generator):
    """Losses, boxes and labels with what breaks an NMS: ties, and boxes that are equal,
    written in another way, empty, or at just the threshold to another."""
    num_rois = int(rng.choice([0, 1, 2, 3, 5, 8, 13, 40]))
    boxes = random_rotated_boxes(rng, num_rois, int(rng.choice([30, 100, 300])))
    for i in range(1, num_rois):
        if rng.random() < 0.6:
            boxes[i] = near(rng, boxes[[rng.integers(i)]])[0]
        if rng.random() < 0.2:  # the IoU with it is the share of the length
            boxes[i] = boxes[rng.integers(i)]
            boxes[i, 2] *= rng.choice([0.3, 0.5, 0.7, 0.71, 0.69])
    boxes[rng.random(num_rois) < 0.05, 2:4] *= rng.choice([0, -1])
    losses = rng.choice([0.0, 0.5, 1.0, 2.0, 3.5], num_rois)
    if rng.random() < 0.5:
        losses = losses + rng.random(num_rois)
    return losses.astype(np.float32), boxes, rng.integers(-1, 2, num_rois)


def test_rotated_rois_are_chosen_as_by_the_plain_loop():
    num_left_out = 0
    for seed in range(600):
        rng = np.random.default_rng(seed)
        losses, boxes, labels = random_case(rng)
        num = int(rng.integers(1, 50))
        nms_iou = rng.choice([0.0001, 0.3, 0.5, 0.7, 1.0, None])
        labels = labels if rng.random() < 0.5 else None
        ious = polygon_ious(boxes, boxes)
        if nms_iou is not None and (np.abs(ious - nms_iou) < 2 * TOLERANCE).any():
            num_left_out += 1  # these may be told either way
            continue

        chosen = select_hard_rois(
            torch.from_numpy(losses),
            torch.from_numpy(boxes),
            num,
            nms_iou,
            None if labels is None else torch.from_numpy(labels),
        )

        def iou(i, j, ious=ious):
            return ious[i, j]

        expected = plain_select_hard_rois(
            losses, range(len(boxes)), num, nms_iou, labels, iou=iou
        )
        assert chosen.tolist() == expected, f'seed {seed}'
        assert chosen.dtype == torch.int64
    assert num_left_out < 200, num_left_out


def test_an_iou_of_just_the_threshold_survives_at_any_angle():
    for angle in np.linspace(-3, 3, 50):
        boxes = torch.tensor([[7, 9, 20, 8, angle], [7, 9, 10, 8, angle]]).float()
        losses = torch.tensor([1.0, 0.5])
        assert select_hard_rois(losses, boxes, 2, 0.5).tolist() == [0, 1]
        assert select_hard_rois(losses, boxes, 2, 0.499).tolist() == [0]


def test_the_same_box_written_in_another_way_is_dropped():
    """mmcv 2.1's box_iou_rotated gives an IoU of 0 for about one pair in eight."""
    boxes = torch.from_numpy(random_rotated_boxes(np.random.default_rng(0), 200, 900))
    half_turn = boxes + torch.tensor([0, 0, 0, 0, math.pi])
    quarter = boxes[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, math.pi / 2])
    losses = torch.arange(2.0, 0, -1)
    for other in (half_turn, quarter):
        for pair in torch.stack([boxes, other], dim=1):
            assert select_hard_rois(losses, pair, 2).tolist() == [0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
def test_the_same_rotated_rois_on_cpu_and_gpu():
    for seed in range(300):
        losses, boxes, labels = map(
            torch.from_numpy, random_case(np.random.default_rng(seed))
        )
        on_cpu = select_hard_rois(losses, boxes, 20, labels=labels)
        on_gpu = select_hard_rois(losses.cuda(), boxes.cuda(), 20, labels=labels.cuda())
        assert on_gpu.tolist() == on_cpu.tolist(), f'seed {seed}'
