"""One training image before a detector as it was at one time of its training.

Shapes:
    R: RoIs of an image, P: the foreground among them, which come first
    G: ground-truth boxes
    L: labelled boxes, with those that training ignores
    S: background RoIs that are followed
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, bbox_flip, cat_boxes, get_box_tensor
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor

from mmdet_ohem.mining import (
    Mining,
    box_iou,
    boxes_like,
    select_hard_rois,
    watched,
)

# Background with this IoU or more lies on an object that has a label. Two boxes of one
# size share 46% of their areas at an IoU of 0.3, where MMDetection's background still
# is: with 0.3 here, half of the spots on a set of small cells were labelled cells. At
# 0.1 they share 18%, as neighbours in a crowd do.
FAR_FROM_OBJECTS = 0.1
# The hardest of the background that are followed, for each image and checkpoint.
NUM_SPOTS = 5


@dataclass
class Scored:
    """An image at one checkpoint, with boxes in pixels of the image file.

    Boxes (N, 4) are x1, y1, x2, y2, boxes (N, 5) cx, cy, w, h, angle in radians, boxes
    (N, 8) four corners. Those of the ground truth are of the data set's kind, those of
    spots are of the kind of the detector's RoIs.

    Args:
        sample: of the image, on the CPU.
        gt_boxes: (G, 4), (G, 5) or (G, 8).
        gt_losses: (G,), of each as a RoI.
        gt_mined: (G,) bool, whether a RoI of it was mined.
        labelled_boxes: L of the same kind, G and those that training ignores, VOC's
            difficult ones.
        spot_boxes: (S, 4) or (S, 5), background that was mined far from every
            labelled box.
        spot_losses: (S,), falling.
        mined_loss: the mean over the mined RoIs.
        scores: (G + S, classes + 1), what the network says, the last for background.
    """

    sample: DetDataSample
    gt_boxes: Tensor
    gt_losses: Tensor
    gt_mined: Tensor
    labelled_boxes: Tensor
    spot_boxes: Tensor
    spot_losses: Tensor
    mined_loss: float
    scores: Tensor


@torch.no_grad()
def score_image(detector: TwoStageDetector, data: dict, num: int) -> Scored:
    """Rank the RoIs of an image, and ask what the network takes the hard ones for.

    Args:
        detector: in eval mode; of a cascade the first stage counts.
        data: of a training set.
        num: RoIs that are mined, after NMS at 0.7.
    """
    batch = detector.data_preprocessor(pseudo_collate([data]), training=True)
    with watched(detector.roi_head) as rankings, _features(detector) as features:
        detector(**batch, mode='loss')
    mining = rankings[0][0]
    mined = select_hard_rois(mining.losses, mining.candidates.boxes, num)
    gt_losses, gt_mined = _of_ground_truth(mining, mined)

    sample = batch['data_samples'][0]
    priors, gt_boxes = mining.candidates.priors, mining.candidates.gt_bboxes
    labelled_boxes = cat_boxes([gt_boxes, sample.ignored_instances.bboxes])
    labelled_rois = get_box_tensor(boxes_like(priors, labelled_boxes))
    spots = _spots(mining, mined, labelled_rois)
    spot_boxes = mining.candidates.boxes[spots]
    asked = torch.cat([labelled_rois[: len(gt_boxes)], spot_boxes])
    (said,) = detector.roi_head.predict_bbox(
        features[0],
        [sample.metainfo],
        [InstanceData(bboxes=_of_kind(priors, asked))],
        rcnn_test_cfg=None,
    )
    return Scored(
        sample.cpu(),
        _in_file(gt_boxes, sample),
        gt_losses.cpu(),
        gt_mined.cpu(),
        _in_file(labelled_boxes, sample),
        _in_file(_of_kind(priors, spot_boxes), sample),
        mining.losses[spots].cpu(),
        float(mining.losses[mined].mean()) if len(mined) else 0.0,
        said.scores.cpu(),
    )


@contextmanager
def _features(detector: TwoStageDetector) -> Iterator[list[tuple[Tensor]]]:
    """Keep the feature maps that the RoI head is given: the backbone runs once."""
    features = []
    last = detector.neck if detector.with_neck else detector.backbone
    handle = last.register_forward_hook(
        lambda module, inputs, outputs: features.append(outputs)
    )
    try:
        yield features
    finally:
        handle.remove()


def _of_ground_truth(mining: Mining, mined: Tensor) -> tuple[Tensor, Tensor]:
    """(G,) the loss of each ground-truth box as a RoI, and (G,) bool, whether a RoI of
    it is among the mined (K,)."""
    candidates, losses = mining.candidates, mining.losses
    num_pos = len(candidates.pos_inds)
    gt_of = candidates.assign_result.gt_inds[candidates.pos_inds] - 1  # (P,)
    is_gt = candidates.gt_flags[candidates.pos_inds] > 0
    gt_losses = losses.new_zeros(len(candidates.gt_bboxes))
    gt_losses[gt_of[is_gt]] = losses[:num_pos][is_gt]
    gt_mined = torch.zeros_like(gt_losses, dtype=torch.bool)
    gt_mined[gt_of[mined[mined < num_pos]]] = True
    return gt_losses, gt_mined


def _spots(mining: Mining, mined: Tensor, labelled_rois: Tensor) -> Tensor:
    """(S,) the hardest of the mined (K,) far from every labelled box, given as L
    RoIs."""
    background = mined[mined >= len(mining.candidates.pos_inds)]
    overlaps = box_iou(mining.candidates.boxes[background], labelled_rois)
    is_far = (overlaps < FAR_FROM_OBJECTS).all(dim=1)
    return background[is_far][:NUM_SPOTS]


def _of_kind(priors: Tensor | BaseBoxes, boxes: Tensor) -> Tensor | BaseBoxes:
    """Numbers of boxes as boxes of the kind of ``priors``."""
    return type(priors)(boxes) if isinstance(priors, BaseBoxes) else boxes


def _in_file(boxes: Tensor | BaseBoxes, sample: DetDataSample) -> Tensor:
    """Boxes of the network's input in pixels of the image file, on the CPU."""
    boxes = boxes.cpu()
    direction = sample.get('flip_direction')
    scale_factor = sample.get('scale_factor', (1.0, 1.0))
    if isinstance(boxes, BaseBoxes):
        boxes = boxes.clone()
        if direction:
            boxes.flip_(sample.img_shape, direction)
        boxes.rescale_([1 / factor for factor in scale_factor])
        return boxes.tensor
    if direction:
        boxes = bbox_flip(boxes, sample.img_shape, direction)
    return boxes / boxes.new_tensor(scale_factor).repeat(2)
