import math

import cv2
import numpy as np
import pytest
import torch
from mmdet.evaluation.functional.mean_ap import tpfp_default
from mmengine.structures import InstanceData
from support.detection_reference import check_apart, draw_until_decided, random_seed
from support.reference import iou, random_boxes
from support.rotated_boxes import polygon_iou

from mmdet_ohem.visualization.pictures import (
    BACKGROUND,
    FOREGROUND,
    GROUND_TRUTH,
    Boxes,
    _without_sign_of_zero,
    draw_boxes,
    judge,
    montage,
    titled,
    with_legend,
)


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
    assert (sheet[2:4, :3] == 255).all() and (sheet[:4, 5] == 255).all()
    assert (sheet[4:, :2] == 3).all() and (sheet[4:, 3:] == 255).all()


def test_a_hard_roi_is_drawn_stronger_than_an_easy_one():
    image = np.full((240, 320, 3), 255, np.uint8)
    boxes = torch.tensor([[10.0, 20, 100, 120], [200.0, 50, 300, 200]])
    group = Boxes(boxes, FOREGROUND, strengths=torch.tensor([0.0, 1.0]))
    ink = 255 - draw_boxes(image, [group]).astype(int)
    assert 0 < ink[:, :320].max() < 0.5 * ink[:, 320:].max()


@pytest.mark.parametrize(
    'box', [(160, 120, 120, 40, 0.6), (122, 53, 221, 120, 198, 153, 99, 86)]
)
def test_a_turned_box_is_drawn_as_it_lies(box):
    image = np.full((240, 320, 3), 255, np.uint8)
    picture = draw_boxes(image, [Boxes(torch.tensor([box]).float(), FOREGROUND)])
    near = np.abs(picture.astype(int) - FOREGROUND).max(axis=2) < 80
    drawn = [np.ravel(cv2.boxPoints(cv2.minAreaRect(np.argwhere(near)[:, ::-1])))]
    assert polygon_iou(drawn[0] / 2, box) > 0.9  # the picture is twice as large
    rows, columns = near.nonzero()
    top, left = rows.min(), columns.min()
    assert not near[top : top + 20, left : left + 20].any()


def instances(boxes, labels, scores=None) -> InstanceData:
    found = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
    )
    if scores is not None:
        found.scores = torch.tensor(scores)
    return found


def test_detections_are_right_false_or_on_what_is_ignored():
    truth = instances([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 1])
    ignored = instances([[80, 80, 99, 99]], [0])
    found = instances(
        [
            [0, 0, 10, 9],  # the first object
            [0, 0, 10, 10],  # the same again, with a lower score
            [50, 50, 60, 60],  # the second, but of the wrong class
            [80, 80, 99, 98],  # on the difficult one
            [50, 50, 60, 61],  # the second
            [20, 20, 30, 30],  # nothing
        ],
        [0, 0, 0, 0, 1, 1],
        [0.9, 0.8, 0.7, 0.6, 0.9, 0.9],
    )
    right, false = judge(found, truth, ignored)
    assert right.tolist() == [True, False, False, False, True, False]
    assert false.tolist() == [False, True, True, False, False, True]
    nothing = instances([], [])
    right, false = judge(found, nothing, nothing)
    assert not right.any() and false.all()


def as_rotated(boxes: torch.Tensor, angle: float) -> torch.Tensor:
    """Upright boxes (N, 4) as rotated ones (N, 5), all turned about the origin."""
    sides = boxes[:, 2:] - boxes[:, :2]
    x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).unbind(1)
    cos, sin = math.cos(angle), math.sin(angle)
    centre = torch.stack([x * cos - y * sin, x * sin + y * cos], dim=1)
    return torch.cat([centre, sides, torch.full_like(sides[:, :1], angle)], dim=1)


@draw_until_decided
def test_detections_are_judged_as_mmdetection_judges_upright_ones():
    """Turned with everything else a detection is as right as before."""
    rng = np.random.default_rng(random_seed())
    truth, ignored, found = (
        InstanceData(
            bboxes=torch.from_numpy(random_boxes(rng, number, 60, 60)),
            labels=torch.from_numpy(rng.integers(0, 3, number)),
            scores=torch.from_numpy(rng.permutation(number) / number),
        )
        for number in (12, 4, 80)
    )
    for box in found.bboxes.numpy():
        for other in (*truth.bboxes.numpy(), *ignored.bboxes.numpy()):
            check_apart(iou(box, other), 0.5)
    right, false = torch.zeros(2, 80, dtype=torch.bool)
    for label in range(3):
        inds = (found.labels == label).nonzero().flatten()
        rows = torch.cat([found.bboxes, found.scores[:, None]], dim=1)[inds]
        of_class = [
            part.bboxes[part.labels == label].numpy() for part in (truth, ignored)
        ]
        tp, fp = tpfp_default(rows.numpy(), *of_class, 0.5)
        right[inds], false[inds] = (
            torch.from_numpy(tp[0] > 0),
            torch.from_numpy(fp[0] > 0),
        )
    assert right.any() and false.any() and not (right | false).all()
    for angle in (None, 0.0, 0.4):
        parts = [part.clone() for part in (found, truth, ignored)]
        if angle is not None:
            for part in parts:
                part.bboxes = as_rotated(part.bboxes, angle)
        judged = judge(*parts)
        assert judged[0].equal(right) and judged[1].equal(false), angle


def test_boxes_of_another_kind_call_nothing_false():
    found = instances([[0, 0, 10, 10]], [0], [0.9])
    found.bboxes = as_rotated(found.bboxes, 0.1)
    truth = instances([[50, 50, 60, 60]], [0])
    right, false = judge(found, truth, instances([], []))
    assert right.all() and not false.any()


def test_a_loss_of_zero_has_no_sign():
    assert [f'{_without_sign_of_zero(x):.2g}' for x in (-0.0, -1e-9, 0.126, 12.3)] == [
        '0',
        '0',
        '0.13',
        '12',
    ]


def test_a_legend_and_a_title_are_strips_of_the_same_width():
    image = np.zeros((100, 640, 3), np.uint8)
    picture = with_legend(titled(image, 'random'), {'ground truth': GROUND_TRUTH})
    assert picture.shape[1] == 640 and (picture[-2:] == 255).all()
    near = np.abs(picture[-48:].astype(int) - GROUND_TRUTH).max(axis=2) < 80
    assert near.any()


@pytest.mark.parametrize('order', [[0, 1, 2, 3], [3, 2, 1, 0]])
def test_a_turned_box_ends_at_the_edge_of_the_picture(order):
    image = np.full((240, 320, 3), 255, np.uint8)
    corners = torch.tensor([[300.0, 60, 380, 120, 300, 180, 220, 120]])
    corners = corners.unflatten(1, (4, 2))[:, order].flatten(1)
    outside = torch.tensor([[400.0, 60, 480, 120, 400, 180, 350, 120]])
    boxes = torch.cat([corners, outside])
    picture = draw_boxes(image, [Boxes(boxes, FOREGROUND, ['in', 'out'])])
    assert picture.shape == (480, 640, 3)
    near = np.abs(picture.astype(int) - FOREGROUND).max(axis=2) < 80
    assert near[236:245, 436:450].any()  # the corner at the left, twice as large
    assert not near[:, :430].any()
