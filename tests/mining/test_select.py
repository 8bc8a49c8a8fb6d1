import numpy as np
import pytest
import torch
from support.reference import select_hard_rois as plain_select_hard_rois

from mmdet_ohem.mining.select import select_hard_rois


def random_case(rng: np.random.Generator):
    """Losses, boxes, labels with what breaks an NMS: ties, equal, empty boxes."""
    num_rois = int(rng.choice([0, 1, 2, 3, 5, 8, 13, 40]))
    # Few whole numbers make many equal boxes, exact IoUs and ties.
    corners = rng.integers(0, 7, (num_rois, 4)) * rng.choice([1, 0.1, 40])
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
    if rng.random() < 0.5:
        boxes += rng.normal(0, 0.3, boxes.shape) * (rng.random(boxes.shape) < 0.3)
    losses = rng.choice([0.0, 0.5, 1.0, 2.0, 3.5], num_rois)
    if rng.random() < 0.5:
        losses = losses + rng.random(num_rois)
    labels = rng.choice([[-1, -1, -1], [-1, 0, 0], [-1, 0, 1]], axis=0)
    labels = rng.choice(labels, num_rois)
    return losses.astype(np.float32), boxes.astype(np.float32), labels


def test_select_hard_rois_equals_the_plain_loop():
    for seed in range(4000):
        rng = np.random.default_rng(seed)
        losses, boxes, labels = random_case(rng)
        num = int(rng.integers(1, 50))
        nms_iou = rng.choice([0.0, 0.3, 0.5, 0.7, 1.0, None])
        labels = labels if rng.random() < 0.5 else None

        chosen = select_hard_rois(
            torch.from_numpy(losses),
            torch.from_numpy(boxes),
            num,
            nms_iou,
            None if labels is None else torch.from_numpy(labels),
        )

        expected = plain_select_hard_rois(losses, boxes, num, nms_iou, labels)
        assert chosen.tolist() == expected, f'seed {seed}'
        assert chosen.dtype == torch.int64


@pytest.mark.parametrize('labelled', [False, True])
def test_thousands_of_rois_span_several_blocks(labelled):
    # 3000 boxes crowd so closely that hardly any survives: all blocks are visited.
    rng = np.random.default_rng(7)
    boxes = np.tile(np.float32([10, 10, 110, 90]), (3000, 1))
    boxes += rng.uniform(-9, 9, boxes.shape).astype(np.float32)
    losses = rng.random(3000).astype(np.float32).round(2)
    labels = rng.integers(-1, 3, 3000) if labelled else None

    chosen = select_hard_rois(
        torch.from_numpy(losses),
        torch.from_numpy(boxes),
        64,
        labels=torch.from_numpy(labels) if labelled else None,
    )

    assert chosen.tolist() == plain_select_hard_rois(losses, boxes, 64, 0.7, labels)
    assert len(chosen) < 64


def test_the_hardest_drops_its_neighbours_and_nobody_else():
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 7], [50, 50, 60, 60]]
    ).float()
    losses = torch.tensor([2.0, 3.0, 1.0, 0.5])

    # Against RoI 1: IoU 0.8 with RoI 0, 7/8 with RoI 2.
    assert select_hard_rois(losses, boxes, 4).tolist() == [1, 3]
    # RoI 2 is a foreground RoI, the others are background.
    labels = torch.tensor([-1, -1, 5, -1])
    assert select_hard_rois(losses, boxes, 4, labels=labels).tolist() == [1, 2, 3]
    assert select_hard_rois(losses, boxes, 3, nms_iou=None).tolist() == [1, 0, 2]


def test_an_iou_of_just_the_threshold_survives():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 5]]).float()
    assert select_hard_rois(torch.tensor([1.0, 0.5]), boxes, 2, 0.5).tolist() == [0, 1]
    assert select_hard_rois(torch.tensor([1.0, 0.5]), boxes, 2, 0.49).tolist() == [0]


def test_boxes_in_relative_coordinates_are_chosen_alike():
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 64, (200, 4))
    boxes = torch.tensor(
        np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    ).float()
    losses = torch.from_numpy(rng.random(200))
    in_pixels = select_hard_rois(losses, boxes, 50)
    assert select_hard_rois(losses, boxes / 2**20, 50).tolist() == in_pixels.tolist()


@pytest.mark.parametrize(
    'num, nms_iou, error, words',
    [
        (0, 0.7, ValueError, 'num.*1 or more, got 0'),
        (-3, 0.7, ValueError, 'num.*1 or more, got -3'),
        ('64', 0.7, TypeError, "num.*must be an int, got '64'"),
        (True, 0.7, TypeError, 'num'),
        (64, 1.5, ValueError, r'nms_iou must lie in \[0, 1\].*1.5'),
        (64, -0.1, ValueError, 'nms_iou'),
        (64, float('nan'), ValueError, 'nms_iou'),
        (64, '0.7', TypeError, 'nms_iou'),
    ],
)
def test_num_and_nms_iou_out_of_range(num, nms_iou, error, words):
    with pytest.raises(error, match=words):
        select_hard_rois(torch.rand(3), torch.rand(3, 4), num, nms_iou)


def test_nan_and_wrong_shapes_are_named():
    boxes = torch.tensor([[0, 0, 4, 4], [1, 1, 3, 3]]).float()
    with pytest.raises(ValueError, match='1 of 2 RoIs.*RoI 1 with loss nan'):
        select_hard_rois(torch.tensor([1.0, float('nan')]), boxes, 1)
    with pytest.raises(ValueError, match='RoI 0 .*inf'):
        select_hard_rois(torch.rand(2), boxes - torch.tensor([[np.inf], [0]]), 1)
    with pytest.raises(ValueError, match=r'losses \(R,\)'):
        select_hard_rois(torch.rand(3), boxes, 1)
    with pytest.raises(ValueError, match=r'labels must be \(R,\)'):
        select_hard_rois(torch.rand(2), boxes, 1, labels=torch.zeros(3))
