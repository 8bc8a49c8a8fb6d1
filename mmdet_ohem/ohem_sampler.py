"""OHEMSampler: hands a RoI head's proposals to mining.py, returns a SamplingResult."""

import inspect
import warnings
from dataclasses import dataclass

import torch
from mmdet.models.roi_heads import (
    MultiInstanceRoIHead,
    PISARoIHead,
    PointRendRoIHead,
    SparseRoIHead,
)
from mmdet.models.task_modules import AssignResult, SamplingResult
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_ohem.mining import check_nms_iou, check_num, select_hard_rois
from mmdet_ohem.plain_head import PlainPass, has_plain_head
from mmdet_ohem.registry import TASK_UTILS
from mmdet_ohem.roi_losses import Candidates, candidate_losses, find_candidates

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

UNFIT_ROI_HEADS = {
    SparseRoIHead: 'trains on every one of its learned proposals',
    # CrowdDet
    MultiInstanceRoIHead: 'gives one loss for all RoIs, even with '
    "reduction_override='none'",
}


@dataclass
class Mining:
    """How the RoIs of an image were ranked.

    Args:
        candidates: the R RoIs that took part.
        losses: (R,) float32, the loss that ranks each; of those that were sure not to
            be mined it may stem from a pass in bfloat16 (plain_head.py).
        mined: (K,) int64, into the two, in order of falling loss.
    """

    candidates: Candidates
    losses: Tensor
    mined: Tensor


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
    with a warning. docs/detectors.md lists the RoI heads that it works with.

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
            or a value out of range, or a ``context`` that has no loss to rank by. The
            message names the key.
    """

    def __init__(
        self,
        num: int,
        context: nn.Module | None = None,
        nms_iou: float | None = 0.7,
        nms_per_label: bool = False,
        add_gt_as_proposals: bool = True,
        readonly_dropout: bool = False,
        **inherited,
    ) -> None:
        check_num(num)
        check_nms_iou(nms_iou)
        _check_inherited(inherited)
        _check_has_losses(context)
        self.num = num
        self.nms_iou = nms_iou
        self.nms_per_label = nms_per_label
        self.add_gt_as_proposals = add_gt_as_proposals
        self.readonly_dropout = readonly_dropout
        self.context = context
        # Cascade heads build their samplers stage by stage and say which one it is.
        self.stage = context.current_stage if hasattr(context, 'num_stages') else None
        assigner = context.bbox_assigner
        _check_background_bound(
            assigner if self.stage is None else assigner[self.stage], self.stage
        )
        if isinstance(context, PointRendRoIHead):
            context.mask_head.register_forward_pre_hook(_refuse_no_foreground)

    def sample(
        self,
        assign_result: AssignResult,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        feats: list[Tensor],
        **kwargs,
    ) -> SamplingResult | tuple[SamplingResult, None]:
        """Mine one image.

        Args:
            assign_result: of the proposals; ground truth is added to it.
            pred_instances: ``priors`` (number of proposals, 4), x1, y1, x2, y2 in
                pixels of the network's input.
            gt_instances: ``bboxes`` (G, 4) in the same coordinates, ``labels`` (G,).
            feats: the image's feature maps, each (1, C, H, W).

        Returns:
            The mined RoIs, foreground first. Its attribute ``losses`` (K,) float32
            holds the loss that ranked each, in the order of its ``priors``; its
            attribute ``mining`` the whole ranking. For PISA's RoI head: this and None,
            for it unpacks a pair, the second being weights for the background.

        Raises:
            ValueError: a loss of the head stays reduced (the message names its key), or
                a loss or a box is NaN or infinite.
        """
        candidates = find_candidates(
            assign_result, pred_instances, gt_instances, self.add_gt_as_proposals
        )
        mined, losses = self._rank(candidates, feats)
        result = candidates.sampling_result(mined)
        is_foreground = mined < len(candidates.pos_inds)
        result.losses = losses[torch.cat([mined[is_foreground], mined[~is_foreground]])]
        result.mining = Mining(candidates, losses, mined)
        return (result, None) if isinstance(self.context, PISARoIHead) else result

    def _rank(self, candidates: Candidates, feats: list[Tensor]):
        """(K,) int64, the mined candidates, and (R,) float32, the loss of each."""
        labels = candidates.labels if self.nms_per_label else None
        choice = (self.num, self.nms_iou, labels)
        # Dropout masks differ from pass to pass, so there it is one pass over all.
        is_plain = has_plain_head(self.context, self.stage) and not (
            self.readonly_dropout or len(candidates) == 0
        )
        if not is_plain:
            losses = candidate_losses(
                self.context, candidates, feats, self.stage, self.readonly_dropout
            )
        try:
            if is_plain:
                image = PlainPass(self.context, candidates, feats, self.stage)
                return image.mine(*choice)
            return select_hard_rois(losses, candidates.boxes, *choice), losses
        except ValueError as error:
            raise ValueError(
                f'mmdet_ohem.OHEMSampler cannot rank the RoIs of an image: {error} '
                'Training has diverged: lower optim_wrapper.optimizer.lr or set '
                'optim_wrapper.clip_grad.'
            ) from error


def _check_has_losses(context: nn.Module | None) -> None:
    """Refuse what has no loss for each RoI."""
    name = 'what builds it' if context is None else type(context).__name__
    if not hasattr(context, 'bbox_head'):
        raise TypeError(
            'mmdet_ohem.OHEMSampler mines RoIs by the loss of a RoI head, but '
            f'{name} has no bbox_head; set it in train_cfg.rcnn.sampler, keep '
            'RandomSampler in train_cfg.rpn.sampler, and for a one-stage detector wrap '
            'the loss in mmdet_ohem.OHEMLoss.'
        )
    for roi_head, reason in UNFIT_ROI_HEADS.items():
        if isinstance(context, roi_head):
            raise TypeError(
                f'mmdet_ohem.OHEMSampler cannot mine for {name}, which {reason}; keep '
                "the sampler of the detector's own config in train_cfg.rcnn.sampler."
            )
    bbox_heads = context.bbox_head
    for bbox_head in [bbox_heads] if hasattr(bbox_heads, 'loss') else bbox_heads:
        if not _takes(bbox_head.loss, 'reduction_override'):
            raise TypeError(
                'mmdet_ohem.OHEMSampler ranks RoIs by the loss of each, but '
                f'{type(bbox_head).__name__}.loss() has no argument reduction_override '
                "to ask for it, as that of MMDetection's BBoxHead has; add it to your "
                'roi_head.bbox_head, or keep RandomSampler in train_cfg.rcnn.sampler.'
            )


def _takes(function, keyword: str) -> bool:
    parameters = inspect.signature(function).parameters
    return keyword in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _refuse_no_foreground(mask_head: nn.Module, args: tuple[Tensor]) -> None:
    """PointRend's own word for it is a bare assert."""
    if mask_head.training and len(args[0]) == 0:
        raise ValueError(
            'PointRendRoIHead cannot train on a batch without foreground, and none of '
            'the RoIs that mmdet_ohem.OHEMSampler mined in this one is foreground; '
            'raise train_cfg.rcnn.sampler.num, or leave images without objects out of '
            'the training set (dataset.filter_cfg.filter_empty_gt=True).'
        )


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
