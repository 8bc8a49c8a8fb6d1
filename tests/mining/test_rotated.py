"""RoI heads with rotated boxes, by box types that stand in for MMRotate's.

tests/mining/test_mmrotate.py runs MMRotate's own heads, where it is installed.
"""

import functools

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.models.task_modules import AssignResult
from mmdet.structures.bbox import HorizontalBoxes, bbox2roi
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from support.roi_heads import EXTRACTOR, NUM_CLASSES, head_config
from support.rotated_boxes import FourCorners, TurnedBoxes, make_rotated_samples
from support.shipped_heads import (
    build_head,
    nothing_is_foreground,
    run_checked_loss,
    stages_of,
)

from mmdet_ohem.mining import find_candidates
from mmdet_ohem.mining.fast_pass import takes_fast_pass

FIVE_DELTAS = dict(
    head_config(), bbox_coder=dict(type='FiveDeltas'), predict_box_type='turned'
)
TURNED_EXTRACTOR = dict(type='TurnedRoIExtractor')


def stage() -> dict:
    return dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.5,
            match_low_quality=False,
            iou_calculator=dict(type='PolygonOverlaps'),
        ),
        sampler=dict(type='mmdet_ohem.OHEMSampler', num=16),
        pos_weight=-1,
    )


class RatioHead(Shared2FCBBoxHead):
    """As Gliding Vertex's: one output more, and two targets more."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.fc_ratio = torch.nn.Linear(self.reg_last_dim, 1)

    def forward(self, x):
        hidden = x.flatten(1)
        for fc in self.shared_fcs:
            hidden = fc(hidden).relu()
        return self.fc_cls(hidden), self.fc_reg(hidden), self.fc_ratio(hidden)

    def get_targets(self, sampling_results, rcnn_train_cfg, concat=True):
        targets = super().get_targets(sampling_results, rcnn_train_cfg, concat)
        areas = [
            torch.cat([result.pos_gt_bboxes.areas, result.neg_inds.new_zeros(num_neg)])
            for result in sampling_results
            for num_neg in [len(result.neg_inds)]
        ]
        ratios = torch.cat(areas)[:, None] / 1000
        return *targets, ratios, (targets[0] < self.num_classes).float()[:, None]

    def loss_and_target(
        self,
        cls_score,
        bbox_pred,
        ratio_pred,
        rois,
        sampling_results,
        rcnn_train_cfg,
        reduction_override=None,
    ):
        *targets, ratios, weights = self.get_targets(sampling_results, rcnn_train_cfg)
        losses = super().loss(
            cls_score, bbox_pred, rois, *targets, reduction_override=reduction_override
        )
        is_foreground = weights[:, 0] > 0
        losses['loss_ratio'] = ratio_pred[is_foreground].sum() * 0
        if is_foreground.any():
            losses['loss_ratio'] = self.loss_bbox(
                ratio_pred[is_foreground],
                ratios[is_foreground],
                weights[is_foreground],
                avg_factor=len(rois),
                reduction_override=reduction_override,
            )
        return dict(loss_bbox=losses, bbox_targets=targets)


class RatioRoIHead(StandardRoIHead):
    def _bbox_forward(self, x, rois):
        feats = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        scores, deltas, ratios = self.bbox_head(feats)
        return dict(
            cls_score=scores, bbox_pred=deltas, ratio_pred=ratios, bbox_feats=feats
        )

    def bbox_loss(self, x, sampling_results):
        rois = bbox2roi([result.priors for result in sampling_results])
        results = self._bbox_forward(x, rois)
        losses = self.bbox_head.loss_and_target(
            results['cls_score'],
            results['bbox_pred'],
            results['ratio_pred'],
            rois,
            sampling_results,
            self.train_cfg,
        )
        return dict(results, **losses)


# Whether each stage takes the faster pass, the kinds of boxes, and the head.
HEADS = {
    # Oriented R-CNN: rotated RoIs.
    'rotated RoIs': (
        [False],
        TurnedBoxes,
        TurnedBoxes,
        dict(
            type='StandardRoIHead',
            bbox_roi_extractor=TURNED_EXTRACTOR,
            bbox_head=FIVE_DELTAS,
            train_cfg=stage(),
        ),
    ),
    # Rotated Faster R-CNN: the ground truth alone is rotated.
    'horizontal RoIs': (
        [True],
        HorizontalBoxes,
        TurnedBoxes,
        dict(
            type='StandardRoIHead',
            bbox_roi_extractor=EXTRACTOR,
            bbox_head=FIVE_DELTAS,
            train_cfg=stage(),
        ),
    ),
    # RoI Transformer: horizontal RoIs first, then rotated ones.
    'two stages': (
        [True, False],
        HorizontalBoxes,
        TurnedBoxes,
        dict(
            type='CascadeRoIHead',
            num_stages=2,
            stage_loss_weights=[1, 1],
            bbox_roi_extractor=[EXTRACTOR, TURNED_EXTRACTOR],
            bbox_head=[dict(FIVE_DELTAS, reg_class_agnostic=True), FIVE_DELTAS],
            train_cfg=[stage(), stage()],
        ),
    ),
    # Gliding Vertex: quadrilaterals, and more outputs than scores and deltas.
    'more outputs': (
        [False],
        HorizontalBoxes,
        FourCorners,
        dict(
            type=RatioRoIHead,
            bbox_roi_extractor=EXTRACTOR,
            bbox_head=dict(FIVE_DELTAS, type=RatioHead),
            train_cfg=stage(),
        ),
    ),
}


@pytest.mark.parametrize('name', HEADS)
def test_a_head_with_rotated_boxes_mines_as_a_plain_ranking(name):
    is_fast, roi_type, gt_type, config = HEADS[name]
    roi_head = build_head(ConfigDict(config))
    stages = stages_of(roi_head)
    make_samples = functools.partial(make_rotated_samples, roi_type, gt_type)
    run_checked_loss(roi_head, 0, 3, make_samples)
    run_checked_loss(roi_head, 1, 0, make_samples)
    nothing_is_foreground(roi_head)
    run_checked_loss(roi_head, 2, 3, make_samples)
    assert is_fast == [takes_fast_pass(roi_head, stage) for stage, *_ in stages]


def image(roi_type=TurnedBoxes, gt_type=TurnedBoxes):
    sample = make_rotated_samples(roi_type, gt_type, 0, NUM_CLASSES)[0]
    proposals = InstanceData(priors=sample.proposals.bboxes)
    zeros = torch.zeros(len(proposals.priors), dtype=torch.int64)
    assigned = AssignResult(3, zeros, zeros.float(), zeros.clone())
    assigned.gt_inds[:9] = torch.arange(9) // 3 + 1
    return assigned, proposals, sample.gt_instances


def test_boxes_without_area_take_no_part():
    assigned, proposals, gt = image()
    proposals.priors.tensor[3, 2] = 0
    proposals.priors.tensor[20, 3] = 0
    proposals.priors.tensor[21, 3] = -5
    gt.bboxes.tensor[2, 3] = 0  # proposals 6, 7 and 8 are its
    found = find_candidates(assigned, proposals, gt)
    # The ground truth stands before the proposals.
    assert found.pos_inds.tolist() == [0, 1, 3, 4, 5, 7, 8]
    assert found.neg_inds.tolist() == [i + 3 for i in range(9, 39) if i not in (20, 21)]


def test_four_corners_without_area_take_no_part():
    assigned, proposals, gt = image(HorizontalBoxes, FourCorners)
    gt.bboxes.tensor[1] = torch.tensor([5.0, 5, 9, 9, 9, 9, 5, 5])
    found = find_candidates(assigned, proposals, gt, add_gt=False)
    assert found.pos_inds.tolist() == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_box_that_is_not_finite_is_named(bad):
    assigned, proposals, gt = image()
    proposals.priors.tensor[4, 4] = bad
    with pytest.raises(ValueError, match='got 1 of 42 RoIs with a NaN or infinite'):
        find_candidates(assigned, proposals, gt)


def test_boxes_of_kinds_that_do_not_fit_are_named():
    assigned, proposals, gt = image()
    four = gt.bboxes.tensor[:, :4]
    for gts, rois, words in (
        # Nothing is registered from quadrilaterals to these.
        (FourCorners(four.repeat(1, 2)), proposals.priors, 'FourCorners of 8 numbers'),
        (gt.bboxes, proposals.priors.tensor, 'TurnedBoxes of 5.*Tensor of 5 numbers'),
        (four, proposals.priors.tensor, 'Tensor of 4 numbers.*Tensor of 5 numbers'),
    ):
        with pytest.raises(ValueError, match=words):
            find_candidates(
                assigned, InstanceData(priors=rois), InstanceData(bboxes=gts)
            )
    seven = torch.rand(39, 7)
    with pytest.raises(ValueError, match='got RoIs of 7 numbers, but mines'):
        find_candidates(assigned, InstanceData(priors=seven), gt)
