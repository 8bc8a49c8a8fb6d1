"""The read-only pass for MMDetection's plain bbox heads: what `roi_losses.py` computes
by the head's own `loss()`, and the same choice of RoIs, for less time and memory.

Three things are saved, none of which changes what is mined (docs/speed.md has the
measurements):

- RoIs that coincide on the feature map's grid go through the head once.
- The head runs on `CHUNK` RoIs at a time, so that its memory does not grow with them.
- Where bfloat16 is fast, all RoIs are scored in bfloat16, and only those that could
  still be mined in full precision.

Shapes:
    R: candidates of an image, foreground first, P of them
    K: RoIs among them whose features differ
    D: outputs of the bbox head, classes + 1 scores and the box deltas
"""

from contextlib import nullcontext

import torch
from mmdet.models.losses import CrossEntropyLoss, L1Loss, SmoothL1Loss
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from mmdet_ohem.mining import overlaps, read_only, select_hard_rois, take
from mmdet_ohem.roi_losses import Candidates

# 51 MB of VGG16's pooled features in float32.
CHUNK = 512
# Below it (a head of 8 MB in bfloat16) a second pass costs more than it saves.
MIN_WEIGHTS_FOR_BFLOAT16 = 2**22
# RoIs spread over the whole ranking whose error in bfloat16 is looked at.
NUM_PROBES = 32
# The error of a RoI that was scored in bfloat16 alone is taken to be at most this many
# times the largest error seen. Errors are sums of thousands of roundings, with normal
# tails: the largest of 100 lies near 2.5 standard deviations, four times it at 10.
SAFETY = 4
# After so many turns less one, all RoIs are scored in full precision: those of a dead
# network differ by less than bfloat16 can tell.
MAX_TURNS = 5


def has_plain_head(roi_head: nn.Module, stage: int | None) -> bool:
    """Whether the outputs and losses of the RoI head are known to be those of
    MMDetection's BBoxHead with softmax and (smooth) L1, each RoI for itself."""
    bbox_head = roi_head.bbox_head if stage is None else roi_head.bbox_head[stage]
    own_class = StandardRoIHead if stage is None else CascadeRoIHead
    return (
        type(roi_head)._bbox_forward is own_class._bbox_forward
        and isinstance(bbox_head, BBoxHead)
        and type(bbox_head).loss is BBoxHead.loss
        and type(bbox_head).get_targets is BBoxHead.get_targets
        and bbox_head.with_cls
        and bbox_head.with_reg
        and not bbox_head.reg_decoded_bbox
        and type(bbox_head.loss_cls) is CrossEntropyLoss
        and not bbox_head.loss_cls.use_sigmoid
        and type(bbox_head.loss_bbox) in (L1Loss, SmoothL1Loss)
    )


class PlainPass:
    """One image before a plain head.

    Args:
        roi_head: of which `has_plain_head` is true.
        candidates: R of them, one or more.
        feats: the image's feature maps, each (1, C, H, W).
        stage: which one, of a cascade.
    """

    def __init__(
        self,
        roi_head: nn.Module,
        candidates: Candidates,
        feats: list[Tensor],
        stage: int | None = None,
    ) -> None:
        self.roi_head = roi_head
        self.feats = feats
        self.candidates = candidates
        self.stage = () if stage is None else (stage,)
        train_cfg = roi_head.train_cfg
        self.bbox_head = roi_head.bbox_head
        self.extractor = roi_head.bbox_roi_extractor
        if stage is not None:
            train_cfg = train_cfg[stage]
            self.bbox_head = self.bbox_head[stage]
            self.extractor = self.extractor[stage]
        self.targets = self.bbox_head.get_targets(
            [candidates.sampling_result()], train_cfg
        )
        self.rois = bbox2roi([candidates.boxes])
        self.roi_of = torch.arange(len(self.rois), device=self.rois.device)
        if hasattr(self.extractor, 'distinct'):
            self.rois, self.roi_of = self.extractor.distinct(self.rois)

    def mine(
        self, num: int, nms_iou: float | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `select_hard_rois`.

        Returns:
            (K,) int64, the mined candidates in order of falling loss, and (R,) float32,
            the losses; those of RoIs that were sure not to be mined may be bfloat16's.
        """

        boxes = self.candidates.boxes
        every_roi = torch.arange(len(self.rois), device=self.rois.device)
        with read_only(self.roi_head):
            if not self._rough_is_worthwhile(num):
                losses = self._losses(self._outputs(every_roi))
                return select_hard_rois(losses, boxes, num, nms_iou, labels), losses
            outputs = self._outputs(every_roi, rough=True)
            rough = self._losses(outputs)
            mined = select_hard_rois(rough, boxes, num, nms_iou, labels)
            ranking = rough.argsort(descending=True)
            probes = ranking[:: -(-len(ranking) // NUM_PROBES)]
            unsure = torch.cat([mined, probes])
            is_exact = torch.zeros_like(every_roi, dtype=torch.bool)
            # No RoI's loss is above `bound`. As long as one is mined that was not
            # scored exactly, it may or may not belong there; once all mined are exact,
            # whatever was passed over overlaps a harder one or comes after the last.
            for turn in range(1, MAX_TURNS + 1):
                rois = self.roi_of[unsure].unique()
                outputs[rois] = self._outputs(rois)
                is_exact[rois] = True
                losses, exact = self._losses(outputs), is_exact[self.roi_of]
                largest_error = (losses - rough)[exact].abs().max()
                bound = torch.where(exact, losses, rough + SAFETY * largest_error)
                mined = select_hard_rois(bound, boxes, num, nms_iou, labels)
                if exact[mined].all():
                    break
                if turn == MAX_TURNS - 1:
                    unsure = (~exact).nonzero().flatten()
                    continue
                expected = select_hard_rois(losses, boxes, num, nms_iou, labels)
                cut = torch.minimum(bound[mined[-1]], losses[expected[-1]])
                unsure = _unsure(mined, cut, bound, exact, boxes, nms_iou, labels)
            return mined, losses

    def _rough_is_worthwhile(self, num: int) -> bool:
        num_weights = sum(weight.numel() for weight in self.bbox_head.parameters())
        return (
            len(self.rois) > 4 * num
            and num_weights >= MIN_WEIGHTS_FOR_BFLOAT16
            and self.feats[0].dtype == torch.float32
            # Under AMP the precision is the user's choice already.
            and not _is_autocast(self.feats[0].device)
            and has_fast_bfloat16(self.feats[0].device)
        )

    def _outputs(self, which: Tensor, rough: bool = False) -> Tensor:
        """The bbox head's outputs (len(which), D) float32 for some of the K RoIs."""
        feats, precision = self.feats, nullcontext()
        if rough:
            precision = torch.autocast(feats[0].device.type, torch.bfloat16)
            if hasattr(self.extractor, 'distinct'):
                # Rounding keeps the order, so it may come before max pooling.
                feats = [feat.bfloat16() for feat in feats]
        chunks = []
        with precision:
            for chunk in which.split(CHUNK):
                results = self.roi_head._bbox_forward(
                    *self.stage, feats, self.rois[chunk]
                )
                outputs = [results['cls_score'], results['bbox_pred']]
                chunks.append(torch.cat(outputs, dim=1).float())
        return torch.cat(chunks)

    def _losses(self, outputs: Tensor) -> Tensor:
        """(R,) float32: BBoxHead.loss() by RoI, without its accuracy, and without
        waiting for the device."""
        head, num_pos = self.bbox_head, len(self.candidates.pos_inds)
        labels, label_weights, bbox_targets, bbox_weights = self.targets
        outputs = outputs[self.roi_of]
        box_dims = head.fc_reg.out_features
        losses = head.loss_cls(
            outputs[:, :-box_dims], labels, label_weights, reduction_override='none'
        ).float()
        if num_pos == 0:
            return losses
        deltas = outputs[:num_pos, -box_dims:]
        if not head.reg_class_agnostic:
            own_class = labels[:num_pos]
            deltas = deltas.unflatten(1, (-1, 4))
            deltas = deltas[torch.arange(num_pos, device=labels.device), own_class]
        box_losses = head.loss_bbox(
            deltas,
            bbox_targets[:num_pos],
            bbox_weights[:num_pos],
            reduction_override='none',
        )
        losses[:num_pos] += box_losses.sum(dim=1)
        return losses


def _unsure(
    mined: Tensor,
    cut: Tensor,
    bound: Tensor,
    exact: Tensor,
    boxes: Tensor,
    nms_iou: float | None,
    labels: Tensor | None,
) -> Tensor:
    """The RoIs that are not exact, reach the loss at which the last will probably be
    mined, and are not dropped by an exact one.

    Those of the mined that are not exact would do, but going by them alone takes a turn
    for every member of a cluster.
    """
    unsure = (~exact & (bound >= cut)).nonzero().flatten()
    if nms_iou is None:
        return unsure
    sure = mined[exact[mined]]
    drops = overlaps(
        boxes[sure], take(labels, sure), boxes[unsure], take(labels, unsure), nms_iou
    )
    drops &= bound[sure][:, None] > bound[unsure][None, :]
    return unsure[~drops.any(dim=0)]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrices multiply faster in bfloat16 than in float32."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == 'cpu':
        # PyTorch has no public word for it; without this one it stays float32.
        names = ('_is_avx512_bf16_supported', '_is_amx_tile_supported')
        return any(getattr(torch.cpu, name, bool)() for name in names)
    return False


def _is_autocast(device: torch.device) -> bool:
    try:
        return torch.is_autocast_enabled(device.type)
    except TypeError:  # before PyTorch 2.4 it took no device
        return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()
