"""OHEMSampler: hands a RoI head's proposals to mining.py, returns a SamplingResult."""

import warnings

import torch
from mmdet.models.task_modules import AssignResult, SamplingResult
from mmdet.structures.bbox import bbox2roi, cat_boxes, get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_ohem.mining import (
    check_nms_iou,
    check_num,
    loss_per_roi,
    read_only,
    select_hard_rois,
)
from mmdet_ohem.registry import TASK_UTILS

# Keys of MMDetection's own samplers. A config that changes `type` alone inherits them;
# hard example mining has no ratio and no bins for them to set.
MEANINGLESS_KEYS = {
    'pos_fraction',
    'neg_pos_ub',
    'rng',  # RandomSampler
    'pos_sampler',
    'neg_sampler',  # CombinedSampler
    'floor_thr',
    'floor_fraction',
    'num_bins',  # IoUBalancedNegSampler
    'loss_key',  # MMDetection's OHEMSampler
    'k',
    'bias',
    'score_thr',
    'iou_thr',  # ScoreHLRSampler
}


@TASK_UTILS.register_module()
class OHEMSampler:
    """Online Hard Example Mining as in the paper (Shrivastava et al., CVPR 2016).

    All RoIs of an image, ground truth included, go through the RoI head once without
    gradient. They are ranked by the head's own classification plus box loss; NMS with
    the loss as the score removes duplicates; the hardest ``num`` are the mini-batch of
    that image, foreground and background as they come. RoIs that the assigner ignores
    (-1) take no part.

    It stands in ``train_cfg.rcnn.sampler`` (for Cascade R-CNN: of any stage) in place
    of any of MMDetection's samplers, whose keys without a meaning here are ignored
    with a warning.

    Args:
        num: RoIs per image, B/N in the paper (128/2 = 64).
        context: the RoI head; MMDetection passes it.
        nms_iou: RoIs that overlap a harder one by more are dropped; 0.7 in the paper
            (section 4.1). None: no NMS.
        nms_per_label: RoIs drop only RoIs of their own label, background being one
            label: what the authors' release does. The paper describes one NMS per
            image.
        add_gt_as_proposals: ground-truth boxes take part, as in the release.
        readonly_dropout: draw dropout masks in the read-only pass, as the release
            does. This makes the ranking random.
        **inherited: see above.

    Raises:
        TypeError, ValueError: when built, for a key that no sampler has, a wrong type
            or a value out of range, or a ``context`` that has no bbox head. The
            message names the key.
    """

    def __init__(
        self,
        num: int,
        context: nn.Module,
        nms_iou: float | None = 0.7,
        nms_per_label: bool = False,
        add_gt_as_proposals: bool = True,
        readonly_dropout: bool = False,
        **inherited,
    ) -> None:
        check_num(num)
        check_nms_iou(nms_iou)
        _check_inherited(inherited)
        if not hasattr(context, 'bbox_head'):
            raise TypeError(
                'mmdet_ohem.OHEMSampler mines RoIs by the loss of a RoI head, but '
                f'{type(context).__name__} has no bbox_head; set it in train_cfg.rcnn.'
                'sampler and keep RandomSampler in train_cfg.rpn.sampler.'
            )
        self.num = num
        self.nms_iou = nms_iou
        self.nms_per_label = nms_per_label
        self.add_gt_as_proposals = add_gt_as_proposals
        self.readonly_dropout = readonly_dropout
        self.context = context
        # Cascade heads build their samplers stage by stage and say which one it is.
        self.stage = context.current_stage if hasattr(context, 'num_stages') else None
        _check_background_bound(self._of_stage(context.bbox_assigner), self.stage)

    def sample(
        self,
        assign_result: AssignResult,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        feats: list[Tensor],
        **kwargs,
    ) -> SamplingResult:
        """Mine one image.

        Args:
            assign_result: of the proposals; ground truth is added to it.
            pred_instances: ``priors`` (number of proposals, 4), x1, y1, x2, y2 in
                pixels of the network's input.
            gt_instances: ``bboxes`` (G, 4) in the same coordinates, ``labels`` (G,).
            feats: the image's feature maps, each (1, C, H, W).

        Returns:
            The mined RoIs. Its attribute ``losses`` (K,) float32 holds the loss that
            ranked each, in the order of its ``priors``.
        """
        priors, gt_flags = self._add_gt(assign_result, pred_instances, gt_instances)
        gt_bboxes = gt_instances.bboxes
        pos_inds, neg_inds = _candidates(assign_result, priors, gt_bboxes)

        def sampling_result(pos_inds: Tensor, neg_inds: Tensor) -> SamplingResult:
            return SamplingResult(
                pos_inds, neg_inds, priors, gt_bboxes, assign_result, gt_flags
            )

        candidates = sampling_result(pos_inds, neg_inds)
        losses = self._losses(candidates, feats)
        try:
            mined = select_hard_rois(
                losses,
                get_box_tensor(candidates.priors),
                self.num,
                self.nms_iou,
                _labels(candidates) if self.nms_per_label else None,
            )
        except ValueError as error:
            raise ValueError(
                f'mmdet_ohem.OHEMSampler cannot rank the RoIs of an image: {error} '
                'Training has diverged: lower optim_wrapper.optimizer.lr or set '
                'optim_wrapper.clip_grad.'
            ) from error
        num_pos = len(pos_inds)
        mined_pos, mined_neg = mined[mined < num_pos], mined[mined >= num_pos]
        result = sampling_result(pos_inds[mined_pos], neg_inds[mined_neg - num_pos])
        result.losses = losses[torch.cat([mined_pos, mined_neg])]
        return result

    def _add_gt(self, assign_result, pred_instances, gt_instances):
        """Put the ground truth before the proposals, as MMDetection's samplers do."""
        priors, gt_bboxes = pred_instances.priors, gt_instances.bboxes
        gt_flags = get_box_tensor(priors).new_zeros(len(priors), dtype=torch.uint8)
        if not self.add_gt_as_proposals or len(gt_bboxes) == 0:
            return priors, gt_flags
        if not isinstance(priors, Tensor) and not isinstance(gt_bboxes, Tensor):
            gt_bboxes = gt_bboxes.convert_to(type(priors))
        assign_result.add_gt_(gt_instances.labels)
        gt_flags = torch.cat([gt_flags.new_ones(len(gt_bboxes)), gt_flags])
        return cat_boxes([gt_bboxes, priors]), gt_flags

    def _losses(self, candidates: SamplingResult, feats: list[Tensor]) -> Tensor:
        """The read-only pass: (R,) float32, the head's loss for each RoI."""
        num_pos, num_rois = len(candidates.pos_inds), len(candidates.priors)
        if num_rois == 0:
            return feats[0].new_zeros(0, dtype=torch.float32)
        bbox_head = self._of_stage(self.context.bbox_head)
        rois = bbox2roi([candidates.priors])
        stage = () if self.stage is None else (self.stage,)
        with read_only(self.context, dropout=self.readonly_dropout):
            outputs = self.context._bbox_forward(*stage, feats, rois)
            targets = bbox_head.get_targets(
                [candidates], self._of_stage(self.context.train_cfg)
            )
            losses = bbox_head.loss(
                outputs['cls_score'],
                outputs['bbox_pred'],
                rois,
                *targets,
                reduction_override='none',
            )
            return loss_per_roi(losses, num_rois, num_pos)

    def _of_stage(self, per_stage):
        return per_stage if self.stage is None else per_stage[self.stage]


def _check_inherited(inherited: dict) -> None:
    unknown = sorted(set(inherited) - MEANINGLESS_KEYS)
    if unknown:
        raise TypeError(
            f'mmdet_ohem.OHEMSampler has no key {", ".join(unknown)}; it takes num, '
            'nms_iou, nms_per_label, add_gt_as_proposals and readonly_dropout.'
        )
    if inherited:
        warnings.warn(
            f'mmdet_ohem.OHEMSampler ignores {", ".join(sorted(inherited))}: hard '
            'example mining has no use for what other samplers set there.',
            stacklevel=3,
        )


def _check_background_bound(assigner, stage: int | None) -> None:
    """The bound bg_lo of Fast R-CNN stands in MMDetection's assigner."""
    bound = getattr(assigner, 'neg_iou_thr', 0)
    key = f'train_cfg.{"rcnn" if stage is None else f"rcnn[{stage}]"}.assigner'
    if isinstance(bound, list):
        raise ValueError(
            f'{key}.neg_iou_thr={bound} is a list, of which MMDetection makes no '
            'background at all; write a tuple, or one number.'
        )
    if isinstance(bound, tuple) and bound[0] > 0:
        warnings.warn(
            f'{key}.neg_iou_thr={bound} keeps background below IoU '
            f'{bound[0]} out of hard example mining, so that hard background far from '
            f'any object is never seen; the paper sets it to {bound[1]}.',
            stacklevel=3,
        )


def _candidates(
    assign_result: AssignResult, priors, gt_bboxes
) -> tuple[Tensor, Tensor]:
    """(P,) and (R - P,) int64, the RoIs assigned to an object and to background.

    A RoI without area, or assigned to an object without area, takes no part: box
    targets divide by the one and take the logarithm of the other.

    Raises:
        ValueError: a box is NaN or infinite (the assigner would quietly ignore it).
    """
    priors, gt_bboxes = get_box_tensor(priors), get_box_tensor(gt_bboxes)
    finite = priors.isfinite().all(dim=1)
    if not finite.all():
        box = priors[~finite][0].tolist()
        raise ValueError(
            f'mmdet_ohem.OHEMSampler got {int((~finite).sum())} of {len(priors)} RoIs '
            f'with a NaN or infinite coordinate, such as {box}; look at the proposals '
            'and the ground truth of this image, or, if a network makes the proposals, '
            'lower optim_wrapper.optimizer.lr.'
        )
    has_area = _has_area(priors)
    pos_inds = (has_area & (assign_result.gt_inds > 0)).nonzero().flatten()
    neg_inds = (has_area & (assign_result.gt_inds == 0)).nonzero().flatten()
    if len(pos_inds) > 0:
        gt_inds = assign_result.gt_inds[pos_inds] - 1
        pos_inds = pos_inds[_has_area(gt_bboxes)[gt_inds]]
    return pos_inds, neg_inds


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def _labels(candidates: SamplingResult) -> Tensor:
    """(R,) int64, the class of each RoI, -1 for background."""
    background = candidates.neg_inds.new_full((len(candidates.neg_inds),), -1)
    return torch.cat([candidates.pos_gt_labels, background])
