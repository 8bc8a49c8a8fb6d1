"""The read-only pass: the loss of every RoI of an image, by its RoI head's own rules.

Shapes:
    A: what the assigner saw, the proposals of an image, with the ground truth or not
    R: the candidates among them, those that take part in mining
    P: the foreground among the candidates, which come first
    G: ground-truth boxes
"""

from dataclasses import dataclass

import torch
from mmdet.models.task_modules import AssignResult, SamplingResult
from mmdet.structures.bbox import bbox2roi, cat_boxes, get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_ohem.mining import loss_per_roi, read_only


@dataclass
class Candidates:
    """The RoIs of an image that can be mined, foreground first.

    Args:
        pos_inds: (P,) int64, into ``priors``, the RoIs assigned to an object.
        neg_inds: (R - P,) int64, into ``priors``, background.
        priors: (A, 4) Tensor or boxes of MMDetection, x1, y1, x2, y2 in pixels of the
            network's input.
        gt_bboxes: (G, 4), likewise.
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
        """(R, 4)."""
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

    def sampling_result(self, chosen: Tensor | None = None) -> SamplingResult:
        """All candidates, or those of the indices (K,) ``chosen``, in their order but
        foreground first."""
        pos_inds, neg_inds = self.pos_inds, self.neg_inds
        if chosen is not None:
            num_pos = len(pos_inds)
            neg_inds = neg_inds[chosen[chosen >= num_pos] - num_pos]
            pos_inds = pos_inds[chosen[chosen < num_pos]]
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
        ValueError: a box is NaN or infinite (the assigner would quietly ignore it).
    """
    priors, gt_bboxes = pred_instances.priors, gt_instances.bboxes
    gt_flags = get_box_tensor(priors).new_zeros(len(priors), dtype=torch.uint8)
    if add_gt and len(gt_bboxes) > 0:
        first = gt_bboxes
        if not isinstance(priors, Tensor) and not isinstance(first, Tensor):
            first = first.convert_to(type(priors))
        assign_result.add_gt_(gt_instances.labels)
        gt_flags = torch.cat([gt_flags.new_ones(len(gt_bboxes)), gt_flags])
        priors = cat_boxes([first, priors])

    boxes = get_box_tensor(priors)
    finite = boxes.isfinite().all(dim=1)
    if not finite.all():
        box = boxes[~finite][0].tolist()
        raise ValueError(
            f'mmdet_ohem.OHEMSampler got {int((~finite).sum())} of {len(boxes)} RoIs '
            f'with a NaN or infinite coordinate, such as {box}; look at the proposals '
            'and the ground truth of this image, or, if a network makes the proposals, '
            'lower optim_wrapper.optimizer.lr.'
        )
    has_area = _has_area(boxes)
    pos_inds = (has_area & (assign_result.gt_inds > 0)).nonzero().flatten()
    neg_inds = (has_area & (assign_result.gt_inds == 0)).nonzero().flatten()
    if len(pos_inds) > 0:
        gt_inds = assign_result.gt_inds[pos_inds] - 1
        pos_inds = pos_inds[_has_area(get_box_tensor(gt_bboxes))[gt_inds]]
    return Candidates(pos_inds, neg_inds, priors, gt_bboxes, gt_flags, assign_result)


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def candidate_losses(
    roi_head: nn.Module,
    candidates: Candidates,
    feats: list[Tensor],
    stage: int | None = None,
    dropout: bool = False,
) -> Tensor:
    """Run the RoI head on all candidates of an image without a trace.

    Args:
        roi_head: of MMDetection, with ``bbox_head`` and ``_bbox_forward``; its bbox
            head's ``loss`` takes ``reduction_override``.
        feats: the image's feature maps, each (1, C, H, W).
        stage: which one, of a cascade.
        dropout: draw dropout masks, as the authors' release does.

    Returns:
        (R,) float32, classification plus box loss of each candidate.

    Raises:
        ValueError: a loss stays reduced; the message names its key.
    """
    if len(candidates) == 0:
        return feats[0].new_zeros(0, dtype=torch.float32)
    bbox_head, train_cfg = roi_head.bbox_head, roi_head.train_cfg
    stage_args = ()
    if stage is not None:
        bbox_head, train_cfg, stage_args = bbox_head[stage], train_cfg[stage], (stage,)
    sampling_result = candidates.sampling_result()
    rois = bbox2roi([sampling_result.priors])
    with read_only(roi_head, dropout=dropout):
        outputs = roi_head._bbox_forward(
            *stage_args, feats, rois, **_image_features(roi_head, feats)
        )
        targets = bbox_head.get_targets([sampling_result], train_cfg)
        losses = bbox_head.loss(
            outputs['cls_score'],
            outputs['bbox_pred'],
            rois,
            *targets,
            reduction_override='none',
        )
        return loss_per_roi(losses, len(candidates), len(candidates.pos_inds))


def _image_features(roi_head: nn.Module, feats: list[Tensor]) -> dict[str, Tensor]:
    """What HTC and SCNet add to the features of a RoI: they compute it themselves for
    the training pass, but hand a sampler nothing but ``feats``."""
    features = {}
    if getattr(roi_head, 'with_semantic', False):
        features['semantic_feat'] = roi_head.semantic_head(feats)[1]
    if getattr(roi_head, 'with_glbctx', False):
        features['glbctx_feat'] = roi_head.glbctx_head(feats)[1]
    return features
