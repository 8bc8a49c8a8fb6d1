import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from support.detection_reference import random_seed
from support.roi_heads import NUM_CLASSES, make_image, stage_config

from mmdet_ohem.mining import candidate_losses, find_candidates
from mmdet_ohem.mining.fast_pass import FastPass, takes_fast_pass
from mmdet_ohem.models import ClasswiseVGGBBoxHead, VGGBBoxHead

STDS = np.array([0.1, 0.1, 0.2, 0.2])  # target_stds of the coder


def build_roi_head(seed: int, head='ClasswiseVGGBBoxHead', statistics=True):
    init_default_scope('mmdet')
    torch.manual_seed(seed)
    roi_head = MODELS.build(
        ConfigDict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='mmdet_ohem.RoIPoolExtractor',
                output_size=3,
                out_channels=4,
                featmap_strides=[8],
            ),
            bbox_head=dict(
                type=f'mmdet_ohem.{head}',
                in_channels=4,
                roi_feat_size=3,
                fc_out_channels=(8, 8),
                num_classes=NUM_CLASSES,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=STDS.tolist()),
                loss_bbox=dict(type='SmoothL1Loss', beta=1.0),
            ),
            train_cfg=stage_config(),
            test_cfg=dict(
                score_thr=0.0, nms=dict(type='nms', iou_threshold=0.3), max_per_img=100
            ),
        )
    )
    if statistics:
        bbox_head = roi_head.bbox_head
        bbox_head.target_means.normal_()
        bbox_head.target_stds.uniform_(0.3, 3)
    return roi_head


def candidates_of(roi_head, seed: int):
    feats, gt_instances, proposals = make_image(seed)
    assigned = roi_head.bbox_assigner.assign(proposals, gt_instances)
    return find_candidates(assigned, proposals, gt_instances), feats


def test_targets_are_normalised_by_class_and_predictions_undo_it():
    seed = random_seed()
    roi_head = build_roi_head(seed)
    head = roi_head.bbox_head
    candidates, _ = candidates_of(roi_head, seed)
    sample = candidates.sampling_result()
    labels, _, targets, weights = head.get_targets([sample], roi_head.train_cfg)
    num_pos = len(sample.pos_priors)
    assert num_pos > 5 and not targets[num_pos:].any()
    assert weights.sum() == 4 * num_pos
    for i, (box, gt) in enumerate(
        zip(sample.pos_priors.numpy(), sample.pos_gt_bboxes.numpy(), strict=True)
    ):
        size, gt_size = box[2:] - box[:2], gt[2:] - gt[:2]
        centres = ((gt[:2] + gt[2:]) / 2 - (box[:2] + box[2:]) / 2) / size
        plain = np.concatenate([centres, np.log(gt_size / size)]) / STDS
        means, stds = head.target_means[labels[i]], head.target_stds[labels[i]]
        expected = (plain - means.numpy()) / stds.numpy()
        np.testing.assert_allclose(targets[i], expected, rtol=1e-3, atol=1e-4)

    # A head that predicts the targets finds the objects.
    deltas = torch.randn(num_pos, NUM_CLASSES, 4)
    every = torch.arange(num_pos)
    deltas[every, labels[:num_pos]] = targets[:num_pos]
    rois = torch.cat([torch.zeros(num_pos, 1), sample.pos_priors], dim=1)
    (found,) = head.predict_by_feat(
        (rois,),
        (torch.zeros(num_pos, NUM_CLASSES + 1),),
        (deltas.flatten(1),),
        [dict(img_shape=(1000, 1000))],
    )
    boxes = found.bboxes.view(num_pos, NUM_CLASSES, 4)[every, labels[:num_pos]]
    torch.testing.assert_close(boxes, sample.pos_gt_bboxes, rtol=0, atol=0.01)


@pytest.mark.parametrize('num_gts', [0, 4])
def test_the_faster_pass_knows_the_head(num_gts):
    seed = random_seed()
    roi_head = build_roi_head(seed)
    assert takes_fast_pass(roi_head, None)
    feats, gt_instances, proposals = make_image(seed, num_gts=max(num_gts, 1))
    gt_instances = gt_instances[:num_gts]
    assigned = roi_head.bbox_assigner.assign(proposals, gt_instances)
    candidates = find_candidates(assigned, proposals, gt_instances)
    expected = candidate_losses(roi_head, candidates, feats)
    _, losses = FastPass(roi_head, candidates, feats).mine(
        lambda losses: losses.argsort(descending=True)[:16], 16, None, None
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    plain = build_roi_head(seed, statistics=False)  # the same weights
    others = candidate_losses(plain, candidates, feats)
    differs = (others - expected).abs() > 1e-3
    num_pos = len(candidates.pos_inds)
    assert differs[:num_pos].sum() >= 0.8 * num_pos and not differs[num_pos:].any()


def test_weights_without_statistics_are_those_of_the_plain_head():
    """Such as a converted detector's: it is tested, and trained on, as it is."""
    seed = random_seed()
    plain = build_roi_head(seed, head='VGGBBoxHead', statistics=False).eval()
    classwise = build_roi_head(seed + 1).eval()
    weights = plain.state_dict()
    assert type(plain.bbox_head) is VGGBBoxHead
    classwise.load_state_dict(weights, strict=True)
    assert 'bbox_head.target_means' not in weights
    feats, _, proposals = make_image(seed)
    metas = [dict(img_shape=(128, 128))]
    for one, other in zip(
        *(
            roi_head.predict_bbox(
                feats,
                metas,
                [InstanceData(bboxes=proposals.priors)],
                roi_head.test_cfg,
            )
            for roi_head in (plain, classwise)
        ),
        strict=True,
    ):
        assert len(one) > 3
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(one[key], other[key]), key


def test_a_checkpoint_keeps_the_statistics():
    one, other = build_roi_head(0).bbox_head, build_roi_head(1).bbox_head
    assert not torch.equal(one.target_stds, other.target_stds)
    other.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(one.target_means, other.target_means)
    assert torch.equal(one.target_stds, other.target_stds)


@pytest.mark.parametrize('key', ['reg_class_agnostic', 'reg_decoded_bbox'])
def test_boxes_that_no_class_has_to_itself_are_refused(key):
    with pytest.raises(ValueError, match=f'bbox_head.{key} must be False'):
        ClasswiseVGGBBoxHead(num_classes=3, fc_out_channels=(8, 8), **{key: True})
