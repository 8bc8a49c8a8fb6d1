"""OHEMSampler: ranks the RoIs of an image by loss, and returns a SamplingResult."""

import warnings
from dataclasses import dataclass

import torch
from mmdet.models.roi_heads import PISARoIHead, PointRendRoIHead
from mmdet.models.task_modules import AssignResult, SamplingResult
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_ohem.config import as_list, type_name
from mmdet_ohem.mining.candidates import Candidates, find_candidates
from mmdet_ohem.mining.fast_pass import FastPass, autocast_dtype, takes_fast_pass
from mmdet_ohem.mining.roi_losses import candidate_losses, takes
from mmdet_ohem.mining.select import check_nms_iou, check_num, select_hard_rois
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

# Images in a row whose losses may overflow float16. The gradient scaler skips their
# steps, so a network that overflows in every image would train on nothing.
MAX_OVERFLOWS = 10

# Images whose candidates are counted before the sampler says that `num` is large, and
# the part of them that is: MMDetection's FPN configs take 512 of about 1000.
IMAGES_TO_COUNT = 50
LARGE_PART = 2 / 3

# By name: configs give names, and MMDetection's projects are not part of its package.
UNFIT_ROI_HEADS = {
    'SparseRoIHead': 'trains on every one of its learned proposals',
    # CrowdDet
    'MultiInstanceRoIHead': 'gives one loss for all RoIs, even with '
    "reduction_override='none'",
}
UNFIT_BBOX_HEADS = {
    'DeticBBoxHead': 'whose classification loss ignores reduction_override and draws '
    'random numbers',
}


@dataclass
class Mining:
    """How the RoIs of an image were ranked.

    Args:
        candidates: the R RoIs that took part.
        losses: (R,) float32, the loss that ranks each; of those that were sure not to
            be mined it may stem from a pass in bfloat16 (fast_pass.py).
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
        num: RoIs per image, B/N in the paper (128/2 = 64 of about 2000). A config that
            changes ``type`` alone inherits it, such as 512 of about 1000 in
            MMDetection's FPN configs. Where an image has more foreground RoIs than
            that, hardly any background is mined (docs/samplers.md). Above two thirds
            of the RoIs the sampler warns, for little is chosen.
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
        TypeError, ValueError: when built, for a key that no sampler has, a missing
            ``num``, a wrong type or a value out of range, or a ``context`` that has no
            loss to rank by. The message names the key.
    """

    def __init__(
        self,
        num: int | None = None,
        context: nn.Module | None = None,
        nms_iou: float | None = 0.7,
        nms_per_label: bool = False,
        add_gt_as_proposals: bool = True,
        readonly_dropout: bool = False,
        **inherited,
    ) -> None:
        _check_has_losses(context)
        # Cascade heads build their samplers stage by stage and say which one it is.
        self.stage = context.current_stage if hasattr(context, 'num_stages') else None
        self.key = f'train_cfg.rcnn{"" if self.stage is None else f"[{self.stage}]"}'
        if num is None:
            raise TypeError(
                f'{self.key}.sampler has no num: set it to the number of RoIs to train '
                'on in each image (64 in the paper).'
            )
        check_num(num)
        check_nms_iou(nms_iou)
        _check_inherited(inherited)
        self.num = num
        self.nms_iou = nms_iou
        self.nms_per_label = nms_per_label
        self.add_gt_as_proposals = add_gt_as_proposals
        self.readonly_dropout = readonly_dropout
        self.context = context
        assigner = context.bbox_assigner
        _check_background_bound(
            assigner if self.stage is None else assigner[self.stage], self.key
        )
        # Later stages of a cascade are given little more than `num`.
        self._counts: list[int] | None = None if self.stage else []
        self._num_overflows = 0
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
                pixels of the network's input, or (number of proposals, 5), rotated
                boxes cx, cy, w, h, angle in radians.
            gt_instances: ``bboxes`` (G, 4) in the same coordinates, or boxes of another
                kind that can be converted, ``labels`` (G,).
            feats: the image's feature maps, each (1, C, H, W).

        Returns:
            The mined RoIs, foreground first. Its attribute ``losses`` (K,) float32
            holds the loss that ranked each, in the order of its ``priors``; its
            attribute ``mining`` the whole ranking. For PISA's RoI head: this and None,
            for it unpacks a pair, the second being weights for the background.

        Raises:
            ValueError: a loss of the head stays reduced (the message names its key), a
                loss or a box is NaN or infinite, or RoIs and ground truth are boxes of
                kinds that do not fit. Under float16 autocast the loss may not be finite
                for a few images in a row: such RoIs come last, and the training step is
                left to the gradient scaler.
            RuntimeError: the losses of `MAX_OVERFLOWS` images in a row overflowed.
        """
        candidates = find_candidates(
            assign_result, pred_instances, gt_instances, self.add_gt_as_proposals
        )
        self._warn_of_large_num(len(candidates))
        mined, losses = self._rank(candidates, feats)
        foreground, background = candidates.foreground_first(mined)
        result = candidates.sampling_result(foreground, background)
        result.losses = losses[torch.cat([foreground, background])]
        result.mining = Mining(candidates, losses, mined)
        return (result, None) if isinstance(self.context, PISARoIHead) else result

    def _warn_of_large_num(self, num_candidates: int) -> None:
        """Once, after the first images, if most candidates are trained on anyway."""
        if self._counts is None:
            return
        self._counts.append(num_candidates)
        if len(self._counts) < IMAGES_TO_COUNT:
            return
        mean = sum(self._counts) / len(self._counts)
        self._counts = None
        if self.num > LARGE_PART * mean:
            warnings.warn(
                f'{self.key}.sampler.num={self.num} is more than two thirds of the '
                f'{mean:.0f} RoIs that an image has on average (first '
                f'{IMAGES_TO_COUNT} images), so hardly anything is mined. Lower num to '
                'half of them.',
                stacklevel=3,
            )

    def select(self, losses: Tensor, boxes: Tensor, labels: Tensor | None) -> Tensor:
        """`select_hard_rois` with this sampler's settings."""
        return select_hard_rois(losses, boxes, self.num, self.nms_iou, labels)

    def _rank(self, candidates: Candidates, feats: list[Tensor]):
        """(K,) int64, the mined candidates, and (R,) float32, the loss of each."""
        boxes = candidates.boxes
        labels = candidates.labels if self.nms_per_label else None

        def select(losses: Tensor) -> Tensor:
            if autocast_dtype(losses.device) == torch.float16:
                losses = self._overflows_last(losses)
            return self.select(losses, boxes, labels)

        # Dropout masks differ from pass to pass, so there it is one pass over all.
        is_fast = takes_fast_pass(self.context, self.stage) and not (
            self.readonly_dropout or len(candidates) == 0
        )
        if not is_fast:
            losses = candidate_losses(
                self.context, candidates, feats, self.stage, self.readonly_dropout
            )
        try:
            if is_fast:
                image = FastPass(self.context, candidates, feats, self.stage)
                return image.mine(select, self.num, self.nms_iou, labels)
            return select(losses), losses
        except ValueError as error:
            raise ValueError(
                f'mmdet_ohem.OHEMSampler cannot rank the RoIs of an image: {error} '
                'Training has diverged: lower optim_wrapper.optimizer.lr or set '
                'optim_wrapper.clip_grad.'
            ) from error

    def _overflows_last(self, losses: Tensor) -> Tensor:
        """Losses (R,) of a pass in float16, with what is not finite as the smallest."""
        finite = losses.isfinite()
        if finite.all():
            self._num_overflows = 0
            return losses
        self._num_overflows += 1
        if self._num_overflows == MAX_OVERFLOWS:
            raise RuntimeError(
                'mmdet_ohem.OHEMSampler cannot rank the RoIs: with AMP, the RoI head '
                f'has overflowed float16 in {MAX_OVERFLOWS} images in a row. Train '
                'without AMP; where the RoI extractor is RoIPoolExtractor, '
                "optim_wrapper.dtype='bfloat16' works too."
            )
        return losses.where(finite, torch.finfo(losses.dtype).min)


def _check_has_losses(context: nn.Module | None) -> None:
    """Refuse what has no loss for each RoI."""
    name = type(context).__name__
    if context is None:
        raise TypeError(
            'mmdet_ohem.OHEMSampler mines RoIs by the loss of a RoI head and was built '
            "without one (context), as MMDetection3D's RoI heads do, whose boxes have "
            '7 numbers; set it in train_cfg.rcnn.sampler of a detector of MMDetection '
            'or MMRotate, and keep RandomSampler elsewhere.'
        )
    if not hasattr(context, 'bbox_head'):
        raise TypeError(
            'mmdet_ohem.OHEMSampler mines RoIs by the loss of a RoI head, but '
            f'{name} has no bbox_head; set it in train_cfg.rcnn.sampler, keep '
            'RandomSampler in train_cfg.rpn.sampler, and for a one-stage detector wrap '
            'the loss in mmdet_ohem.OHEMLoss.'
        )
    if reason := why_unfit(context):
        raise TypeError(
            f'mmdet_ohem.OHEMSampler cannot mine for {name}, which {reason}; keep '
            "the sampler of the detector's own config in train_cfg.rcnn.sampler."
        )
    for bbox_head in _bbox_heads(context):
        if not takes(bbox_head.loss, 'reduction_override'):
            raise TypeError(
                'mmdet_ohem.OHEMSampler ranks RoIs by the loss of each, but '
                f'{type(bbox_head).__name__}.loss() has no argument reduction_override '
                "to ask for it, as that of MMDetection's BBoxHead has; add it to your "
                'roi_head.bbox_head, or keep RandomSampler in train_cfg.rcnn.sampler.'
            )


def why_unfit(roi_head: nn.Module | dict) -> str | None:
    """Why RoIs cannot be ranked by the loss of this RoI head, or None.

    Args:
        roi_head: built, or its part of a config, where a class that inherits from an
            unfit one is not known as such.
    """
    for name in _class_names(roi_head):
        if name in UNFIT_ROI_HEADS:
            return UNFIT_ROI_HEADS[name]
    for bbox_head in _bbox_heads(roi_head):
        for name in _class_names(bbox_head):
            if name in UNFIT_BBOX_HEADS:
                return f'has roi_head.bbox_head.type={name}, {UNFIT_BBOX_HEADS[name]}'
    return None


def _class_names(part: nn.Module | dict) -> list[str]:
    """Of a built part with its parents."""
    if isinstance(part, dict):
        return [type_name(part)]
    return [kind.__name__ for kind in type(part).mro()]


def _bbox_heads(roi_head: nn.Module | dict) -> list[nn.Module | dict]:
    """One for each stage."""
    if isinstance(roi_head, dict):
        return as_list(roi_head.get('bbox_head') or {})
    bbox_heads = roi_head.bbox_head
    return [bbox_heads] if hasattr(bbox_heads, 'loss') else list(bbox_heads)


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


def _check_background_bound(assigner, key: str) -> None:
    """The bound bg_lo of Fast R-CNN stands in MMDetection's assigner."""
    bound = getattr(assigner, 'neg_iou_thr', 0)
    key = f'{key}.assigner'
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
