"""A faster read-only pass for RoI heads that are known to treat each RoI for itself.

It gives what `roi_losses.py` computes by the head's own `loss()`, for less time and
memory. docs/speed.md has the measurements. Three things are saved:

- RoIs that coincide on the feature map's grid go through the head once.
- The head runs on `CHUNK` RoIs at a time, so that its memory does not grow with them.
- Where bfloat16 pays, all RoIs are scored in bfloat16, and only those that could
  still be mined are scored in full precision.

The first two do not change what is mined. The third does not as long as no error of
bfloat16 is larger than `SAFETY` times the largest error seen on some fifty to a hundred
RoIs of the image. This is a bound for errors with normal tails, as sums of thousands of
roundings have. Of 824 images before trained networks none was mined otherwise. A head
that was wired by hand, so that two large units cancel, was mined otherwise in 1 of 225
images.

Shapes:
    R: candidates of an image, foreground first, P of them
    K: RoIs among them whose features differ
    D: outputs of the bbox head, classes + 1 scores and the box deltas
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from mmdet.models.losses import CrossEntropyLoss, L1Loss, SmoothL1Loss
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead, ConvFCBBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdet_ohem.mining.candidates import Candidates
from mmdet_ohem.mining.roi_losses import read_only
from mmdet_ohem.mining.select import overlaps, take

# What MMDetection's own heads and extractors run, besides what `each_roi_alone` marks.
MMDETS_FUNCTIONS = {
    BBoxHead.forward,
    BBoxHead.get_targets,
    BBoxHead._get_targets_single,
    ConvFCBBoxHead.forward,
    SingleRoIExtractor.forward,
}
KNOWN_PACKAGES = {'torch', 'mmcv', 'mmengine', 'mmdet', 'mmdet_ohem'}

# RoIs that go through the head at once: 51 MB of VGG16's pooled features in float32.
CHUNK = 512
# A GPU pays for every launch, so it takes most images at once: 205 MB in float32. The
# gradient of VGG16's fc6 alone has 411 MB, and is not there yet in this pass.
CHUNK_ON_GPU = 2048
# On a CPU, below it (8 MB in bfloat16) a second pass costs more than it saves.
MIN_WEIGHTS_FOR_BFLOAT16 = 2**22
# The same on a GPU, in multiply-adds of the head for all RoIs of an image. Not measured
# yet. A GPU that does 10 to 30 times 10^12 of them a second in float32 needs 2 to 5 ms
# for 5 * 10^10, and several times less in bfloat16. The second pass and the further
# selections cost 1 to 2 ms of launches and waits for the device. VGG16 with 2000 RoIs
# has 2.4 * 10^11 multiply-adds, Shared2FCBBoxHead with 1000 RoIs has 1.4 * 10^10.
MIN_WORK_FOR_BFLOAT16_ON_GPU = 5 * 10**10
# RoIs spread over the whole ranking whose error in bfloat16 is looked at.
NUM_PROBES = 32
# The error of a RoI that was scored in bfloat16 alone is taken to be at most this many
# times the largest error seen. For normal errors the largest of 100 lies near 2.5
# standard deviations, and four times that near 10.
SAFETY = 4
# After so many turns less one, all RoIs are scored in full precision: those of a dead
# network differ by less than bfloat16 can tell.
MAX_TURNS = 5


def each_roi_alone(function: Callable) -> Callable:
    """Mark a ``forward`` or ``get_targets`` that treats each RoI for itself.

    The output of a marked function for a RoI must not depend on the other RoIs in the
    call. Only then may `FastPass` split the RoIs of an image. A subclass that overrides
    the function does not inherit the mark. An extractor with the methods ``distinct``
    and ``tabulate`` (see RoIPoolExtractor) promises besides that RoIs have equal
    features if the first calls them the same, and that its ``forward`` takes what the
    second makes of the feature map.
    """
    function.each_roi_alone = True
    return function


def takes_fast_pass(roi_head: nn.Module, stage: int | None) -> bool:
    """Whether the RoI head is known to treat each RoI for itself, with softmax and
    (smooth) L1 loss on deltas as MMDetection's BBoxHead computes them.

    What is not known takes the plain way: a ``forward``, ``get_targets``, ``loss`` or
    ``loss_and_target`` of a user's own, layers from elsewhere than PyTorch, OpenMMLab's
    packages and this one, and batch normalisation without running statistics, which
    relates the RoIs.
    """
    bbox_head, extractor = roi_head.bbox_head, roi_head.bbox_roi_extractor
    own_class = StandardRoIHead
    if stage is not None:
        bbox_head, extractor = bbox_head[stage], extractor[stage]
        own_class = CascadeRoIHead
    layers = [*bbox_head.modules(), *extractor.modules()]
    if roi_head.with_shared_head:
        layers += roi_head.shared_head.modules()
    head_type = type(bbox_head)
    return (
        type(roi_head)._bbox_forward is own_class._bbox_forward
        and isinstance(bbox_head, BBoxHead)
        and head_type.loss is BBoxHead.loss
        and head_type.loss_and_target is BBoxHead.loss_and_target
        and _is_known(head_type.get_targets)
        and _is_known(head_type._get_targets_single)
        and _is_known(head_type.forward)
        and _is_known(type(extractor).forward)
        and all(_is_known_layer(layer) for layer in layers)
        and bbox_head.with_cls
        and bbox_head.with_reg
        and not bbox_head.reg_decoded_bbox
        and type(bbox_head.loss_cls) is CrossEntropyLoss
        and not bbox_head.loss_cls.use_sigmoid
        and type(bbox_head.loss_bbox) in (L1Loss, SmoothL1Loss)
    )


def _is_known(function: Callable) -> bool:
    return function in MMDETS_FUNCTIONS or getattr(function, 'each_roi_alone', False)


def _is_known_layer(layer: nn.Module) -> bool:
    if isinstance(layer, _BatchNorm) and layer.running_mean is None:
        return False
    package = type(layer).__module__.partition('.')[0]
    return package in KNOWN_PACKAGES or _is_known(type(layer).forward)


class FastPass:
    """One image before a RoI head that is known.

    Args:
        roi_head: of which `takes_fast_pass` is true.
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
        if self._rounds_rois:
            self.rois, self.roi_of = self.extractor.distinct(self.rois)

        self._maxima = None

    @property
    def _rounds_rois(self) -> bool:
        """Whether the extractor tells RoIs apart by the cells that they cover alone."""
        return hasattr(self.extractor, 'distinct')

    def mine(
        self,
        select: Callable[[Tensor], Tensor],
        num: int,
        nms_iou: float | None,
        labels: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Choose the hardest RoIs.

        Args:
            select: `select_hard_rois` of the candidates by the losses (R,) it is given.
            num, nms_iou, labels: what ``select`` goes by.

        Returns:
            (K,) int64, the mined candidates in order of falling loss, and (R,) float32,
            the losses; those of RoIs that were sure not to be mined may be bfloat16's.
        """

        boxes = self.candidates.boxes
        every_roi = torch.arange(len(self.rois), device=self.rois.device)
        with read_only(self.roi_head):
            if not self._rough_is_worthwhile(num):
                losses = self._losses(self._outputs(every_roi))
                return select(losses), losses
            outputs = self._outputs(every_roi, rough=True)
            rough = self._losses(outputs)
            mined = select(rough)
            ranking = rough.argsort(descending=True)
            probes = ranking[:: -(-len(ranking) // NUM_PROBES)]
            unsure = torch.zeros_like(rough, dtype=torch.bool)
            unsure.index_fill_(0, torch.cat([mined, probes]), True)
            is_exact = torch.zeros_like(every_roi, dtype=torch.bool)
            # No RoI's loss is above `bound`. As long as one is mined that was not
            # scored exactly, it may or may not belong there; once all mined are exact,
            # whatever was passed over overlaps a harder one or comes after the last.
            for turn in range(1, MAX_TURNS + 1):
                rois = self._rois_of(unsure)
                outputs[rois] = self._outputs(rois)
                is_exact.index_fill_(0, rois, True)
                losses, exact = self._losses(outputs), is_exact[self.roi_of]
                largest_error = (losses - rough).abs().masked_fill(~exact, 0).max()
                bound = torch.where(exact, losses, rough + SAFETY * largest_error)
                mined = select(bound)
                if exact[mined].all():
                    break
                if turn == MAX_TURNS - 1:
                    unsure = ~exact
                    continue
                expected = select(losses)
                # Slices: an index of no dimension would come to the host.
                cut = torch.minimum(bound[mined[-1:]], losses[expected[-1:]])
                unsure = _unsure(mined, cut, bound, exact, boxes, nms_iou, labels)
            return mined, losses

    def _rois_of(self, candidates: Tensor) -> Tensor:
        """Indices into the K RoIs, rising, of the candidates that (R,) bool marks."""
        marks = torch.zeros(len(self.rois), dtype=torch.int64, device=self.rois.device)
        marks.index_add_(0, self.roi_of, candidates.long())
        return marks.nonzero().flatten()

    def _rough_is_worthwhile(self, num: int) -> bool:
        device = self.feats[0].device
        num_weights = sum(weight.numel() for weight in self.bbox_head.parameters())
        return (
            bfloat16_pays(device.type, num_weights, len(self.rois))
            and len(self.rois) > 4 * num
            and self.feats[0].dtype == torch.float32
            # Under AMP the precision is the user's choice already.
            and autocast_dtype(device) is None
            and has_fast_bfloat16(device)
        )

    def _outputs(self, which: Tensor, rough: bool = False) -> Tensor:
        """The bbox head's outputs (len(which), D) float32 for some of the K RoIs."""
        device, precision = self.rois.device, nullcontext()
        if rough:
            precision = torch.autocast(device.type, torch.bfloat16)
        feats, chunks = self._feats(rough), []
        chunk_size = CHUNK if device.type == 'cpu' else CHUNK_ON_GPU
        with precision:
            for chunk in which.split(chunk_size):
                rois = chunk if self._rounds_rois else self.rois[chunk]
                results = self.roi_head._bbox_forward(*self.stage, feats, rois)
                scores, deltas = results['cls_score'], results['bbox_pred']
                self.num_scores = scores.shape[1]
                chunks.append(torch.cat([scores, deltas], dim=1).float())
        return torch.cat(chunks)

    def _feats(self, rough: bool) -> list:
        """What the extractor takes: its table of an image is made once."""
        if not self._rounds_rois:
            return self.feats
        if self._maxima is None:
            self._maxima = self.extractor.tabulate(self.feats[0], self.rois)
        return [self._maxima.rounded(torch.bfloat16) if rough else self._maxima]

    def _losses(self, outputs: Tensor) -> Tensor:
        """(R,) float32: BBoxHead.loss() by RoI, without its accuracy, and without
        waiting for the device."""
        head, num_pos = self.bbox_head, len(self.candidates.pos_inds)
        labels, label_weights, bbox_targets, bbox_weights = self.targets
        outputs = outputs[self.roi_of]
        losses = head.loss_cls(
            outputs[:, : self.num_scores],
            labels,
            label_weights,
            reduction_override='none',
        ).float()
        if num_pos == 0:
            return losses
        deltas = outputs[:num_pos, self.num_scores :]
        if not head.reg_class_agnostic:
            # Four numbers a class, or five where boxes are rotated.
            deltas = deltas.unflatten(1, (head.num_classes, -1))
            every = torch.arange(num_pos, device=labels.device)
            deltas = deltas[every, labels[:num_pos]]
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
    """(R,) bool: the RoIs that are not exact, reach the loss at which the last will
    probably be mined, and are not dropped by an exact one.

    Those of the mined that are not exact would do, but going by them alone takes a turn
    for every member of a cluster.
    """
    unsure = ~exact & (bound >= cut)
    if nms_iou is None:
        return unsure
    drops = overlaps(boxes[mined], take(labels, mined), boxes, labels, nms_iou)
    drops &= exact[mined][:, None] & (bound[mined][:, None] > bound[None, :])
    return unsure & ~drops.any(dim=0)


def bfloat16_pays(device_type: str, num_weights: int, num_rois: int) -> bool:
    """Whether scoring all RoIs in bfloat16 saves more than a second pass costs."""
    if device_type == 'cuda':
        return num_weights * num_rois >= MIN_WORK_FOR_BFLOAT16_ON_GPU
    return num_weights >= MIN_WEIGHTS_FOR_BFLOAT16


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrices multiply faster in bfloat16 than in float32."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == 'cpu':
        # PyTorch has no public word for it; without this one it stays float32.
        names = ('_is_avx512_bf16_supported', '_is_amx_tile_supported')
        return any(getattr(torch.cpu, name, bool)() for name in names)
    return False


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision of AMP on this kind of device, None where AMP is off."""
    try:
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
    except TypeError:  # before PyTorch 2.4 it took no device
        if device.type == 'cuda' and torch.is_autocast_enabled():
            return torch.get_autocast_gpu_dtype()
        if device.type == 'cpu' and torch.is_autocast_cpu_enabled():
            return torch.get_autocast_cpu_dtype()
    return None
