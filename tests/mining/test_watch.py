import numpy as np
import pytest
import torch
from mmdet.models.roi_heads import StandardRoIHead
from support.roi_heads import (
    NUM_CLASSES,
    build_from,
    head_config,
    make_image,
    mine,
    plain_losses,
    stage_config,
)

from mmdet_ohem.mining.watch import watched

SAMPLERS = {
    'random': dict(type='RandomSampler', num=16, pos_fraction=0.25),
    'mmdet-ohem': dict(type='mmdet.OHEMSampler', num=16, pos_fraction=0.25),
    'pisa': dict(type='ScoreHLRSampler', num=16, pos_fraction=0.25),
    'ohem': dict(type='mmdet_ohem.OHEMSampler', num=16),
}


def build(sampler: str, neg_iou_thr=(0.1, 0.5)) -> StandardRoIHead:
    config = stage_config()
    config['sampler'] = SAMPLERS[sampler]
    config['assigner']['neg_iou_thr'] = neg_iou_thr
    roi_head = build_from(
        config, head_config(init_cfg=dict(type='Normal', layer='Linear', std=0.5))
    )
    roi_head.init_weights()
    return roi_head


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_the_losses_of_all_rois_are_the_same_for_every_sampler(sampler):
    """Background below the bound of 0.1, which random sampling leaves out, included."""
    roi_head = build(sampler, 0.5 if sampler == 'ohem' else (0.1, 0.5))
    for seed in range(3):
        feats, gt_instances, proposals = make_image(seed)
        boxes = torch.cat([gt_instances.bboxes, proposals.priors])
        expected, labels = plain_losses(
            roi_head, feats, gt_instances, boxes, 'softmax', 'smooth_l1'
        )
        with watched(roi_head) as rankings:
            result = mine(roi_head, feats, gt_instances, proposals)
        result = result[0] if isinstance(result, tuple) else result

        ((mining,),) = rankings
        is_foreground = labels < NUM_CLASSES
        foreground_first = np.argsort(~is_foreground, kind='stable')
        np.testing.assert_allclose(
            mining.losses.numpy(), expected[foreground_first], rtol=2e-4
        )
        assert len(mining.candidates.pos_inds) == is_foreground.sum()
        chosen = foreground_first[mining.mined.numpy()]
        assert set(chosen) == {*result.pos_inds.tolist(), *result.neg_inds.tolist()}
        assert (np.diff(mining.losses[mining.mined].numpy()) <= 0).all()


def test_a_pseudo_sampler_is_not_given_the_ground_truth():
    config = dict(stage_config(), sampler=dict(type='PseudoSampler'))
    roi_head = build_from(config, head_config())
    feats, gt_instances, proposals = make_image(0)
    with watched(roi_head) as rankings:
        result = mine(roi_head, feats, gt_instances, proposals)
    ((mining,),) = rankings
    sampled = torch.cat([result.pos_priors, result.neg_priors])
    boxes = mining.candidates.boxes[mining.mined]
    assert sorted(boxes.tolist()) == sorted(sampled.tolist())
    assert len(mining.candidates) == len(proposals.priors)


def test_watching_changes_neither_the_sample_nor_the_random_state():
    roi_head = build('random')
    image = make_image(0)
    torch.manual_seed(3)
    alone = mine(roi_head, *image)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    with watched(roi_head):
        seen = mine(roi_head, *image)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(seen.pos_inds, alone.pos_inds)
    assert torch.equal(seen.neg_inds, alone.neg_inds)


def test_two_may_watch_and_leave_in_any_order():
    roi_head = build('random')
    image = make_image(0)
    one, other = watched(roi_head), watched(roi_head)
    ((of_one,), (of_other,)) = one.__enter__(), other.__enter__()
    mine(roi_head, *image)
    one.__exit__(None, None, None)
    mine(roi_head, *image)
    other.__exit__(None, None, None)
    mine(roi_head, *image)
    assert (len(of_one), len(of_other)) == (1, 2)
    assert of_one[0] is of_other[0]  # scored once
    assert 'sample' not in vars(roi_head.bbox_sampler)


def test_ignored_regions_are_no_background():
    roi_head = build('random')
    roi_head.bbox_assigner.ignore_iof_thr = 0.5
    feats, gt_instances, proposals = make_image(0)
    ignored = gt_instances[:1].clone()
    ignored.bboxes = proposals.priors[:1]
    assign_result = roi_head.bbox_assigner.assign(proposals, gt_instances, ignored)
    with watched(roi_head) as rankings:
        roi_head.bbox_sampler.sample(
            assign_result, proposals, gt_instances, feats=feats
        )
    candidates = rankings[0][0].candidates
    first_proposal = len(gt_instances)
    seen = {*candidates.pos_inds.tolist(), *candidates.neg_inds.tolist()}
    assert first_proposal not in seen and len(seen) > 40
