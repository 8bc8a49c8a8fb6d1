"""RoI heads of MMDetection's projects, which are not part of its package, by heads that
call the sampler and use its result as theirs do."""

import pytest
import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures.bbox import bbox2roi
from mmengine.config import ConfigDict
from support.roi_heads import EXTRACTOR, build_roi_head, head_config, stage_config
from support.shipped_heads import build_head, nothing_is_foreground, run_checked_loss

from mmdet_ohem.hooks.watching import roi_head_of
from mmdet_ohem.mining import OHEMSampler


class QueriesFromRoIs(StandardRoIHead):
    """As CoStandardRoIHead (Co-DETR): what was sampled becomes queries too."""

    def loss(self, x, rpn_results_list, batch_data_samples):
        gts, ignored, _ = unpack_gt_instances(batch_data_samples)
        sampled = []
        for i, found in enumerate(rpn_results_list):
            found.priors = found.pop('bboxes')
            assigned = self.bbox_assigner.assign(found, gts[i], ignored[i])
            feats = [level[i][None] for level in x]
            sampled.append(
                self.bbox_sampler.sample(assigned, found, gts[i], feats=feats)
            )
        rois = bbox2roi([result.priors for result in sampled])
        results = self._bbox_forward(x, rois)
        losses = self.bbox_head.loss_and_target(
            cls_score=results['cls_score'],
            bbox_pred=results['bbox_pred'],
            rois=rois,
            sampling_results=sampled,
            rcnn_train_cfg=self.train_cfg,
        )
        labels, _, targets, _ = losses['bbox_targets']
        feats = results['bbox_feats'].mean(dim=(2, 3))
        # As many of each image, from the front.
        num = min(len(result.bboxes) for result in sampled)
        of_image = [
            (rois[:, 0] == i).nonzero().flatten()[:num] for i in range(len(gts))
        ]
        self.queries = [
            torch.stack([part[rows] for rows in of_image])
            for part in (rois[:, 1:], labels, targets, feats)
        ]
        return losses['loss_bbox']


def test_the_roi_head_of_co_detr_trains_on_what_is_mined():
    roi_head = build_head(
        ConfigDict(
            type=QueriesFromRoIs,
            bbox_roi_extractor=EXTRACTOR,
            bbox_head=head_config(),
            train_cfg=stage_config(),
        )
    )
    run_checked_loss(roi_head, 0, 3)
    boxes, labels, targets, feats = roi_head.queries
    assert boxes.shape == targets.shape == (2, len(labels[0]), 4)
    assert feats.shape == (2, len(labels[0]), 4)
    run_checked_loss(roi_head, 1, 0)
    nothing_is_foreground(roi_head)
    run_checked_loss(roi_head, 2, 3)


class DeticBBoxHead(Shared2FCBBoxHead):
    """As Detic's: loss_cls is one number, for classes that are drawn at random."""

    def loss(self, *args, reduction_override=None):
        raise AssertionError(torch.rand(1))


@pytest.mark.parametrize(
    'build', [lambda head: OHEMSampler(16, head), lambda head: watch(head)]
)
def test_detic_is_refused_by_its_key_before_a_random_number_is_drawn(build):
    roi_head = build_roi_head()
    roi_head.bbox_head.__class__ = DeticBBoxHead
    before = torch.get_rng_state()
    with pytest.raises(TypeError, match='roi_head.bbox_head.type=DeticBBoxHead, whose'):
        build(roi_head)
    assert torch.equal(torch.get_rng_state(), before)


def watch(roi_head):
    detector = torch.nn.Module()
    detector.roi_head = roi_head
    roi_head_of(detector, 'MiningHook')
