import numpy as np
import torch
from support.detection_reference import draw_until_decided, random_seed, vote
from support.reference import random_boxes

from mmdet_ohem.models.box_voting import vote_boxes


def test_two_overlapping_boxes_worked_out_on_paper():
    # IoU 100 * 100 / (100 * 130) = 0.77, so both vote:
    # y2 = (0.6 * 100 + 0.3 * 130) / (0.6 + 0.3) = 99 / 0.9 = 110
    voters = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 130]])
    scores = torch.tensor([0.6, 0.3])
    labels = torch.tensor([4, 4])
    voted = vote_boxes(voters[:1], labels[:1], voters, scores, labels)
    torch.testing.assert_close(voted, torch.tensor([[0.0, 0, 100, 110]]))


def test_an_iou_of_exactly_one_half_votes_and_another_class_does_not():
    box = torch.tensor([[0.0, 0, 10, 10]])
    voters = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 11]])
    labels = torch.tensor([1, 1, 0])
    scores = torch.tensor([0.5, 0.5, 0.9])
    voted = vote_boxes(box, torch.tensor([1]), voters, scores, labels)
    assert voted.tolist() == [[0, 0, 10, 15]]


def test_a_box_without_voters_stays():
    boxes = torch.tensor([[3.0, 3, 3, 9], [0, 0, 5, 5]])
    labels = torch.tensor([0, 1])
    nobody = torch.zeros(0, dtype=torch.long)
    voted = vote_boxes(boxes, labels, torch.zeros(0, 4), torch.zeros(0), nobody)
    assert torch.equal(voted, boxes)
    # no area: no IoU, not even with itself
    voted = vote_boxes(boxes, labels, boxes, torch.tensor([0.5, 0.5]), labels)
    assert torch.equal(voted, boxes)


@draw_until_decided
def test_random_boxes_of_three_classes_as_plain_numpy_votes():
    rng = np.random.default_rng(random_seed())
    for _ in range(20):
        boxes = random_boxes(rng, 40, 60, 60)
        scores = rng.uniform(0.05, 1, 40).astype(np.float32)
        labels = rng.integers(0, 3, 40)
        voted = vote_boxes(
            *(torch.from_numpy(array[:15]) for array in (boxes, labels)),
            *(torch.from_numpy(array) for array in (boxes, scores, labels)),
        )
        pool = list(zip(labels, scores, boxes, strict=True))
        expected = [vote(labels[i], boxes[i], pool) for i in range(15)]
        np.testing.assert_allclose(voted, expected, rtol=1e-4)
