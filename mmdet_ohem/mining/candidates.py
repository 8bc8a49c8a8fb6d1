"""The RoIs of an image that can be mined, from what MMDetection's assigner saw.

Shapes:
    A: what the assigner saw, the proposals of an image, with the ground truth or not
    R: the candidates among them, those that take part in mining
    P: the foreground among the candidates, which come first
    G: ground-truth boxes
"""

from dataclasses import dataclass

import torch
from mmdet.models.task_modules import AssignResult, SamplingResult
from mmdet.structures.bbox import BaseBoxes, cat_boxes, get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor


@dataclass
class Candidates:
    """The RoIs of an image that can be mined, foreground first.

    Args:
        pos_inds: (P,) int64, into ``priors``, the RoIs assigned to an object.
        neg_inds: (R - P,) int64, into ``priors``, background.
        priors: (A, 4) Tensor or boxes of MMDetection, x1, y1, x2, y2 in pixels of the
            network's input; or (A, 5), rotated boxes cx, cy, w, h, angle in radians.
        gt_bboxes: (G, 4) or (G, 5) likewise, or (G, 8), quadrilaterals; not always of
            the same kind as ``priors``.
        gt_flags: (A,) uint8, 1 where a RoI is a ground-truth box.
        assign_result: of all A.
    """

    pos_inds: Tensor
    neg_inds: Tensor
    priors: Tensor
    gt_bboxes: Tensor
    gt_flags: Tensor
    assign_result: AssignResult

    def __len__(self) -> int:
        return len(self.pos_inds) + len(self.neg_inds)

    @property
    def boxes(self) -> Tensor:
        """(R, 4) or (R, 5)."""
        return get_box_tensor(self.priors)[torch.cat([self.pos_inds, self.neg_inds])]

    @property
    def labels(self) -> Tensor:
        """(R,) int64, the class of each RoI, -1 for background."""
        return torch.cat(
            [
                self.assign_result.labels[self.pos_inds],
                self.neg_inds.new_full((len(self.neg_inds),), -1),
            ]
        )

    def foreground_first(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The foreground and the background among the candidates of the indices (K,)
        ``chosen``, both in their order."""
        is_background = (chosen >= len(self.pos_inds)).long()
        ordered = chosen[is_background.argsort(stable=True)]
        num_background = int(is_background.sum())
        return ordered.split([len(chosen) - num_background, num_background])

    def sampling_result(
        self, foreground: Tensor | None = None, background: Tensor | None = None
    ) -> SamplingResult:
        """All candidates, or those of the indices ``foreground`` and ``background``."""
        pos_inds, neg_inds = self.pos_inds, self.neg_inds
        if foreground is not None:
            neg_inds = neg_inds[background - len(pos_inds)]
            pos_inds = pos_inds[foreground]
        return SamplingResult(
            pos_inds,
            neg_inds,
            self.priors,
            self.gt_bboxes,
            self.assign_result,
            self.gt_flags,
        )


def find_candidates(
    assign_result: AssignResult,
    pred_instances: InstanceData,
    gt_instances: InstanceData,
    add_gt: bool = True,
) -> Candidates:
    """The proposals of an image, with its ground truth before them as MMDetection's
    samplers put it (``assign_result`` is added to as they do).

    RoIs that the assigner ignores (-1) take no part; nor do a RoI without area and one
    assigned to an object without area: box targets divide by the one and take the
    logarithm of the other.

    Raises:
        ValueError: a box is NaN or infinite (the assigner would quietly ignore it), the
            RoIs have neither four nor five numbers, or the ground truth is of another
            kind that cannot be converted.
    """
    priors, gt_bboxes = pred_instances.priors, gt_instances.bboxes
    if priors.shape[1] not in (4, 5):
        raise ValueError(
            f'mmdet_ohem.OHEMSampler got RoIs of {priors.shape[1]} numbers, but mines '
            'boxes of four, x1, y1, x2, y2, or five, cx, cy, w, h, angle; keep the '
            "sampler of the detector's own config in train_cfg.rcnn.sampler."
        )
    gt_flags = get_box_tensor(priors).new_zeros(len(priors), dtype=torch.uint8)
    if add_gt and len(gt_bboxes) > 0:
        first = boxes_like(priors, gt_bboxes)
        assign_result.add_gt_(gt_instances.labels)
        gt_flags = torch.cat([gt_flags.new_ones(len(gt_bboxes)), gt_flags])
        priors = cat_boxes([first, priors])

    boxes, gt_inds = get_box_tensor(priors), assign_result.gt_inds
    finite = boxes.isfinite().all(dim=1)
    takes_part = _has_area(priors) & (gt_inds >= 0)
    if len(gt_bboxes) > 0:
        gt_has_area = _has_area(gt_bboxes)
        takes_part &= (gt_inds == 0) | gt_has_area[(gt_inds - 1).clamp(min=0)]
    is_pos, is_neg = takes_part & (gt_inds > 0), takes_part & (gt_inds == 0)
    # One copy to the host, where two calls of nonzero and two checks would be four.
    counts = torch.stack([is_pos.sum(), is_neg.sum(), (~finite).sum()])
    num_pos, num_neg, num_not_finite = counts.tolist()
    if num_not_finite > 0:
        box = boxes[~finite][0].tolist()
        raise ValueError(
            f'mmdet_ohem.OHEMSampler got {num_not_finite} of {len(boxes)} RoIs '
            f'with a NaN or infinite coordinate, such as {box}; look at the proposals '
            'and the ground truth of this image, or, if a network makes the proposals, '
            'lower optim_wrapper.optimizer.lr.'
        )
    order = (2 - 2 * is_pos.long() - is_neg.long()).argsort(stable=True)
    pos_inds, neg_inds = order[: num_pos + num_neg].split([num_pos, num_neg])
    return Candidates(pos_inds, neg_inds, priors, gt_bboxes, gt_flags, assign_result)


def boxes_like(priors: Tensor | BaseBoxes, boxes: Tensor | BaseBoxes):
    """Ground-truth boxes as boxes of the kind of ``priors``, as an assigner sees them.

    Raises:
        ValueError: there is no way from the one to the other.
    """
    if isinstance(priors, BaseBoxes) and isinstance(boxes, BaseBoxes):
        try:
            return boxes.convert_to(type(priors))
        except AssertionError:  # mmdet's word for a converter that is not there
            pass
    elif type(priors) is type(boxes) and priors.shape[1] == boxes.shape[1]:
        return boxes
    raise ValueError(
        f'The ground truth is {_kind(boxes)} and the RoIs are {_kind(priors)}, and '
        'nothing says how to make the one from the other: load the annotations with '
        'the box_type that the detector is for, or register a converter '
        '(mmdet.structures.bbox.register_box_converter).'
    )


def _kind(boxes: Tensor | BaseBoxes) -> str:
    return f'{type(boxes).__name__} of {boxes.shape[1]} numbers'


def _has_area(boxes: Tensor | BaseBoxes) -> Tensor:
    """(N,) bool."""
    tensor = get_box_tensor(boxes)
    if tensor.shape[1] == 4:
        return (tensor[:, 2:] > tensor[:, :2]).all(dim=1)
    if tensor.shape[1] == 5:
        return (tensor[:, 2:4] > 0).all(dim=1)
    if isinstance(boxes, Tensor):
        raise ValueError(
            f'The ground truth is {_kind(boxes)}, of which nobody knows whether they '
            'have an area: set model.data_preprocessor.boxtype2tensor=False, as '
            'MMRotate does.'
        )
    return boxes.areas > 0
