"""The read-only pass: the loss of every RoI of an image, by its RoI head's own rules.

Shapes:
    R: candidates of an image, foreground first
    P: the foreground among them
"""

import inspect
from collections.abc import Callable
from contextlib import contextmanager

import torch
from mmdet.models.task_modules import SamplingResult
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from mmdet_ohem.mining.candidates import Candidates


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
        losses = _unreduced_losses(bbox_head, outputs, rois, sampling_result, train_cfg)
        return loss_per_roi(losses, len(candidates), len(candidates.pos_inds))


def _unreduced_losses(
    bbox_head: nn.Module,
    outputs: dict,
    rois: Tensor,
    sampling_result: SamplingResult,
    train_cfg: dict,
) -> dict[str, Tensor]:
    """What the bbox head gives in training for a mini-batch, not reduced.

    MMDetection's RoI heads call ``loss_and_target`` with the head's outputs by name;
    that of Gliding Vertex has two more of them, and four more targets.
    """
    asked = getattr(bbox_head, 'loss_and_target', None)
    if asked is None or not takes(asked, 'reduction_override'):
        targets = bbox_head.get_targets([sampling_result], train_cfg)
        return bbox_head.loss(
            outputs['cls_score'],
            outputs['bbox_pred'],
            rois,
            *targets,
            reduction_override='none',
        )
    names = {'cls_score', 'bbox_pred'} | inspect.signature(asked).parameters.keys()
    return asked(
        **{name: value for name, value in outputs.items() if name in names},
        rois=rois,
        sampling_results=[sampling_result],
        rcnn_train_cfg=train_cfg,
        reduction_override='none',
    )['loss_bbox']


def takes(function: Callable, keyword: str) -> bool:
    """Whether a function has an argument of this name."""
    parameters = inspect.signature(function).parameters
    return keyword in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _image_features(roi_head: nn.Module, feats: list[Tensor]) -> dict[str, Tensor]:
    """What HTC and SCNet add to the features of a RoI: they compute it themselves for
    the training pass, but hand a sampler nothing but ``feats``."""
    features = {}
    if getattr(roi_head, 'with_semantic', False):
        features['semantic_feat'] = roi_head.semantic_head(feats)[1]
    if getattr(roi_head, 'with_glbctx', False):
        features['glbctx_feat'] = roi_head.glbctx_head(feats)[1]
    return features


def loss_per_roi(losses: dict[str, Tensor], num_rois: int, num_pos: int) -> Tensor:
    """Add up the unreduced losses of a bbox head for each RoI.

    The paper ranks by the classification and the localisation loss together
    (section 4.1). What a head returns with ``reduction_override='none'`` differs from
    loss to loss; every key with 'loss' in it counts, by its number of rows:

    - R rows (softmax, and box losses of all RoIs): summed per row.
    - k * R rows (SABL's buckets, a row for each side of a box): k rows belong to a RoI
      and count by their mean, for the head divides by the number of rows.
    - P rows (box losses of the foreground): they go to the P positives, which come
      first among the RoIs, in order.
    - no dimension: heads return a bare 0 where there is no positive. Any other is a
      loss that stayed reduced (EQLv2); it cannot rank and is refused.

    Args:
        losses: what ``bbox_head.loss(..., reduction_override='none')`` returned.
        num_rois: R.
        num_pos: P.

    Returns:
        (R,) float32.

    Raises:
        ValueError: a loss has none of these shapes; the message names its key.
    """
    total = None
    for key, value in losses.items():
        if 'loss' not in key:
            continue
        if not isinstance(value, Tensor):
            raise ValueError(
                f'roi_head.bbox_head.{_config_key(key)} returned {key!r} as '
                f'{type(value).__name__}, where hard example mining ranks by a tensor.'
            )
        if total is None:
            total = value.new_zeros(num_rois, dtype=torch.float32)
        rows = 0 if value.dim() == 0 else len(value)
        if rows == num_pos == 0 and not value.any():
            continue
        if 0 < rows == num_pos < num_rois:
            total[:num_pos] += value.float().reshape(num_pos, -1).sum(dim=1)
        elif rows > 0 and rows % num_rois == 0:
            rows_of_roi = rows // num_rois
            total += value.float().reshape(num_rois, -1).sum(dim=1) / rows_of_roi
        else:
            raise ValueError(
                f'roi_head.bbox_head.{_config_key(key)} has shape '
                f'{tuple(value.shape)} for {num_rois} RoIs, {num_pos} of them '
                'foreground: it cannot be told apart by RoI, so hard example mining '
                "cannot rank by it; use a loss that honours reduction_override='none'."
            )
    if total is None:
        raise ValueError(
            'roi_head.bbox_head returned no loss to rank RoIs by, only '
            f'{sorted(losses)}.'
        )
    return total


def _config_key(loss_name: str) -> str:
    """Seesaw, one loss in a config, returns loss_cls_objectness and _classes."""
    return 'loss_cls' if loss_name.startswith('loss_cls') else loss_name


@contextmanager
def read_only(roi_network: nn.Module, dropout: bool = False):
    """Run the RoI network as the paper's read-only copy (section 4.2): shared weights,
    no gradient, nothing left behind.

    Inside, every layer is in eval mode: normalisation uses its running statistics and
    dropout is off, so that the ranking draws no random number. Afterwards every mode
    flag and every buffer (the seesaw loss counts in its own) is what it was.

    Args:
        roi_network: what is run inside, e.g. a RoI head.
        dropout: leave dropout layers as they are, as in the authors' release.
    """
    layers = list(roi_network.modules())
    modes = [(layer, layer.training) for layer in layers]
    buffers = [
        (layer, name, buffer, buffer.clone(), buffer._version)
        for layer in layers
        for name, buffer in layer._buffers.items()
        if buffer is not None
    ]
    try:
        for layer in layers:
            # The flag alone: train() of some modules does more, such as freezing.
            if not (dropout and isinstance(layer, _DropoutNd)):
                layer.training = False
        with torch.no_grad():
            yield
    finally:
        for layer, mode in modes:
            layer.training = mode
        for layer, name, buffer, value, version in buffers:
            layer._buffers[name] = buffer  # it may have been bound anew
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)
        # Up to 2025 PyTorch's autocast keeps the half-precision weights of this pass,
        # which have no gradient, and the training pass after it trains nothing
        # (pytorch issue 65766).
        torch.clear_autocast_cache()
