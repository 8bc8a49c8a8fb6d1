"""A small RoI head, images for it, and its losses by the textbook's formulas."""

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

NUM_CLASSES = 3


def head_config(loss_cls=None, loss_bbox=None, **bbox_head):
    return dict(
        type='Shared2FCBBoxHead',
        in_channels=4,
        fc_out_channels=8,
        roi_feat_size=3,
        num_classes=NUM_CLASSES,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=(0.1, 0.1, 0.2, 0.2)),
        loss_cls=loss_cls or dict(type='CrossEntropyLoss'),
        loss_bbox=loss_bbox or dict(type='SmoothL1Loss', beta=1.0),
        **bbox_head,
    )


def stage_config(**sampler):
    return dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.5,
            match_low_quality=False,
        ),
        sampler=dict(dict(type='mmdet_ohem.OHEMSampler', num=16), **sampler),
        pos_weight=-1,
    )


EXTRACTOR = dict(
    type='SingleRoIExtractor',
    roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=1),
    out_channels=4,
    featmap_strides=[8],
)


def build_roi_head(bbox_head=None, **sampler):
    return build_from(stage_config(**sampler), bbox_head)


def build_from(train_cfg, bbox_head=None):
    torch.manual_seed(0)
    return MODELS.build(
        ConfigDict(
            type='StandardRoIHead',
            bbox_roi_extractor=EXTRACTOR,
            bbox_head=bbox_head or head_config(),
            train_cfg=train_cfg,
        )
    )


def make_image(seed: int, num_gts: int = 4, num_proposals: int = 60):
    """A feature map of stride 8, ground truth, and proposals far from and near it."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.rand(size, generator=generator)

    top_left = rand(num_gts, 2) * 80
    gt = torch.cat([top_left, top_left + 15 + rand(num_gts, 2) * 30], dim=1)
    far = torch.cat([rand(num_proposals, 2) * 90, 20 + rand(num_proposals, 2) * 20], 1)
    far[:, 2:] += far[:, :2]
    near = gt.repeat(5, 1) + (rand(5 * num_gts, 4) - 0.5) * 14
    gt_instances = InstanceData(
        bboxes=gt, labels=torch.randint(NUM_CLASSES, (num_gts,), generator=generator)
    )
    proposals = InstanceData(priors=torch.cat([far, near]))
    return [rand(1, 4, 16, 16)], gt_instances, proposals


def mine(roi_head, feats, gt_instances, proposals, sampler=None, assigner=None):
    assigner = assigner or roi_head.bbox_assigner
    assign_result = assigner.assign(proposals, gt_instances)
    return (sampler or roi_head.bbox_sampler).sample(
        assign_result, proposals, gt_instances, feats=feats
    )


def plain_losses(roi_head, feats, gt_instances, boxes, cls_kind, box_kind):
    """The loss of each of `boxes` (R, 4), worked out from the head's logits and deltas
    by the textbook formulas, one RoI after the other."""
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
    with torch.no_grad():
        roi_feats = roi_head.bbox_roi_extractor(feats, rois)
        logits, deltas = roi_head.bbox_head(roi_feats)
    losses, labels = [], []
    for i, box in enumerate(boxes.numpy()):
        ious = [plain_iou(box, gt) for gt in gt_instances.bboxes.numpy()]
        foreground = len(ious) > 0 and max(ious) >= 0.5
        gt = gt_instances.bboxes[int(np.argmax(ious))].numpy() if foreground else None
        label = (
            int(gt_instances.labels[int(np.argmax(ious))])
            if foreground
            else NUM_CLASSES
        )
        z = logits[i].double().numpy()
        if cls_kind == 'softmax':
            loss = np.log(np.exp(z).sum()) - z[label]
        else:
            target = np.eye(NUM_CLASSES + 1)[label][: len(z)]
            p = 1 / (1 + np.exp(-z))
            entropy = -target * np.log(p) - (1 - target) * np.log(1 - p)
            if cls_kind == 'focal':
                missed = np.where(target == 1, 1 - p, p)
                entropy *= np.where(target == 1, 0.25, 0.75) * missed**2
            loss = entropy.sum()
        if foreground:
            delta = deltas[i].double().numpy().reshape(NUM_CLASSES, 4)[label]
            loss += plain_box_loss(box, gt, delta, box_kind)
        losses.append(loss)
        labels.append(label)
    return np.float64(losses), np.array(labels)


def plain_iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def plain_box_loss(box, gt, delta, kind):
    width, height = box[2] - box[0], box[3] - box[1]
    centre = np.array([box[0] + width / 2, box[1] + height / 2])
    stds = np.array([0.1, 0.1, 0.2, 0.2])
    if kind == 'smooth_l1':
        gt_width, gt_height = gt[2] - gt[0], gt[3] - gt[1]
        gt_centre = np.array([gt[0] + gt_width / 2, gt[1] + gt_height / 2])
        target = np.concatenate(
            [
                (gt_centre - centre) / (width, height),
                np.log([gt_width / width, gt_height / height]),
            ]
        )
        off = np.abs(delta - target / stds)
        return np.where(off < 1, off**2 / 2, off - 0.5).sum()
    delta = delta * stds
    centre = centre + delta[:2] * (width, height)
    size = np.exp(delta[2:]) * (width, height)
    decoded = np.concatenate([centre - size / 2, centre + size / 2])
    return -np.log(max(plain_iou(decoded, gt), 1e-6))
