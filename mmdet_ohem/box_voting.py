"""Box voting, the last step of the paper's +B.

Shapes:
    K: boxes that NMS left, k: those of one class
    M: boxes that vote, m: those of one class
"""

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor


def vote_boxes(
    boxes: Tensor,
    labels: Tensor,
    voters: Tensor,
    voter_scores: Tensor,
    voter_labels: Tensor,
    iou_thr: float = 0.5,
) -> Tensor:
    """Replace each box by the mean of its voters, weighted by their scores.

    The voters of a box are those of its class with an IoU of ``iou_thr`` or more with
    it, itself included if it is among them. A box that nobody votes for, such as one
    of no area, stays.

    The weights are the scores themselves (Gidaris and Komodakis, ICCV 2015, section
    5); the code that they released adds 1.5 to its SVM scores first.

    Args:
        boxes: (K, 4) float, x1, y1, x2, y2 in pixels, width x2 - x1.
        labels: (K,) int.
        voters: (M, 4) float.
        voter_scores: (M,) float, 0 or more.
        voter_labels: (M,) int.
        iou_thr: 0.5 in the OHEM paper.

    Returns:
        (K, 4) float.
    """
    voted = boxes.clone()
    # Class by class: the IoU of all pairs would grow with the square of the classes.
    for label in labels.unique():
        of_class, voting = labels == label, voter_labels == label
        candidates = voters[voting]
        # eps as small as can be, so that no IoU at the threshold falls below it
        eps = torch.finfo(boxes.dtype).tiny
        iou = bbox_overlaps(boxes[of_class], candidates, eps=eps)  # (k, m)
        weights = (iou >= iou_thr) * voter_scores[voting]
        total = weights.sum(dim=1, keepdim=True)
        mean = weights @ candidates / total
        voted[of_class] = torch.where(total > 0, mean, boxes[of_class])
    return voted
