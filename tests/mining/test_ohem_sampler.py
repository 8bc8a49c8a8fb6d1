import copy
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from mmdet.models.task_modules import SamplingResult
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from support.reference import select_hard_rois as plain_select_hard_rois
from support.roi_heads import (
    EXTRACTOR,
    NUM_CLASSES,
    build_from,
    build_roi_head,
    head_config,
    make_image,
    mine,
    plain_losses,
    stage_config,
)

from mmdet_ohem import OHEMSampler

LOSSES = {
    'softmax': dict(type='CrossEntropyLoss'),
    'sigmoid': dict(type='CrossEntropyLoss', use_sigmoid=True),
    'focal': dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
    'smooth_l1': dict(type='SmoothL1Loss', beta=1.0),
    'iou': dict(type='IoULoss', mode='log'),
}


@pytest.mark.parametrize('cls_kind', ['softmax', 'sigmoid', 'focal'])
@pytest.mark.parametrize('box_kind', ['smooth_l1', 'iou'])
@pytest.mark.parametrize('nms_per_label', [False, True])
def test_mined_rois_equal_a_computation_by_hand(cls_kind, box_kind, nms_per_label):
    roi_head = build_roi_head(
        head_config(
            LOSSES[cls_kind],
            LOSSES[box_kind],
            reg_decoded_bbox=box_kind == 'iou',
            # Large outputs, so that losses differ much from RoI to RoI.
            init_cfg=dict(type='Normal', layer='Linear', std=0.5),
        ),
        nms_per_label=nms_per_label,
        num=45,
    )
    roi_head.init_weights()
    for seed in range(5):
        feats, gt_instances, proposals = make_image(seed)
        boxes = torch.cat([gt_instances.bboxes, proposals.priors])
        losses, labels = plain_losses(
            roi_head, feats, gt_instances, boxes, cls_kind, box_kind
        )
        hardest = plain_select_hard_rois(
            losses, boxes.numpy(), 45, 0.7, labels if nms_per_label else None
        )

        result = mine(roi_head, feats, gt_instances, proposals)

        expected_pos = [i for i in hardest if labels[i] < NUM_CLASSES]
        expected_neg = [i for i in hardest if labels[i] == NUM_CLASSES]
        assert expected_pos and expected_neg
        assert result.pos_inds.tolist() == expected_pos, f'seed {seed}'
        assert result.neg_inds.tolist() == expected_neg, f'seed {seed}'
        np.testing.assert_allclose(
            result.losses.numpy(), losses[expected_pos + expected_neg], rtol=2e-4
        )


def test_every_stage_of_a_cascade_mines_with_its_own_head():
    torch.manual_seed(1)
    init = dict(type='Normal', layer='Linear', std=0.5)
    roi_head = MODELS.build(
        ConfigDict(
            type='CascadeRoIHead',
            num_stages=2,
            stage_loss_weights=[1, 0.5],
            bbox_roi_extractor=EXTRACTOR,
            bbox_head=[head_config(init_cfg=init), head_config(init_cfg=init)],
            train_cfg=[stage_config(), stage_config()],
        )
    )
    roi_head.init_weights()
    feats, gt_instances, proposals = make_image(seed=0)
    boxes = torch.cat([gt_instances.bboxes, proposals.priors])
    chosen = []
    for stage in range(2):
        one_stage = copy.copy(roi_head)
        one_stage._modules = dict(
            bbox_head=roi_head.bbox_head[stage],
            bbox_roi_extractor=roi_head.bbox_roi_extractor[stage],
        )
        losses, labels = plain_losses(
            one_stage, feats, gt_instances, boxes, 'softmax', 'smooth_l1'
        )
        hardest = plain_select_hard_rois(losses, boxes.numpy(), 16)
        result = mine(
            roi_head,
            feats,
            gt_instances,
            copy.deepcopy(proposals),
            roi_head.bbox_sampler[stage],
            roi_head.bbox_assigner[stage],
        )
        mined = result.pos_inds.tolist() + result.neg_inds.tolist()
        assert sorted(mined) == sorted(hardest)
        chosen.append(sorted(mined))
    assert chosen[0] != chosen[1]

    sample = DetDataSample(metainfo=dict(img_shape=(128, 128)))
    sample.gt_instances = gt_instances
    proposals.bboxes = proposals.pop('priors')
    losses = roi_head.loss((feats[0],), [proposals], [sample])
    assert all(torch.isfinite(losses[f's{i}.loss_cls']) for i in range(2))


def snapshot(roi_head):
    return dict(
        parameters={k: v.detach().clone() for k, v in roi_head.named_parameters()},
        gradients={
            k: None if v.grad is None else v.grad.clone()
            for k, v in roi_head.named_parameters()
        },
        buffers={k: v.clone() for k, v in roi_head.named_buffers()},
        modes={k: m.training for k, m in roi_head.named_modules()},
        random_state=torch.get_rng_state(),
    )


def assert_same(a, b, path=''):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f'{path}.{key}')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def with_norm_and_dropout(roi_head):
    head = roi_head.bbox_head
    head.shared_fcs[0] = torch.nn.Sequential(
        head.shared_fcs[0], torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)
    )
    return roi_head.train()


SEESAW = dict(type='SeesawLoss', num_classes=NUM_CLASSES)


@pytest.mark.parametrize('loss_cls', [LOSSES['softmax'], SEESAW])
def test_sampling_is_read_only(loss_cls):
    roi_head = with_norm_and_dropout(build_roi_head(head_config(loss_cls)))
    feats, gt_instances, proposals = make_image(seed=2)
    feats[0].requires_grad_()
    roi_head.bbox_head.shared_fcs[0](torch.rand(4, 36)).sum().backward()
    before = snapshot(roi_head)

    first = mine(roi_head, feats, gt_instances, copy.deepcopy(proposals))
    second = mine(roi_head, feats, gt_instances, copy.deepcopy(proposals))

    assert_same(snapshot(roi_head), before)
    assert feats[0].grad is None and not first.losses.requires_grad
    assert first.neg_inds.tolist() == second.neg_inds.tolist()
    assert torch.equal(first.losses, second.losses)


def test_readonly_dropout_makes_the_ranking_random():
    roi_head = with_norm_and_dropout(build_roi_head(readonly_dropout=True))
    feats, gt_instances, proposals = make_image(seed=2)
    modes = snapshot(roi_head)['modes']
    torch.manual_seed(0)
    first = mine(roi_head, feats, gt_instances, copy.deepcopy(proposals))
    second = mine(roi_head, feats, gt_instances, copy.deepcopy(proposals))
    assert not torch.equal(first.losses, second.losses)
    assert snapshot(roi_head)['modes'] == modes


def test_the_training_pass_learns_under_autocast():
    roi_head = build_roi_head().train()
    feats, gt_instances, proposals = make_image(seed=0)
    sample = DetDataSample(metainfo=dict(img_shape=(128, 128)))
    sample.gt_instances = gt_instances
    proposals.bboxes = proposals.pop('priors')
    with torch.autocast('cpu', torch.bfloat16):
        losses = roi_head.loss((feats[0],), [proposals], [sample])
    (losses['loss_cls'] + losses['loss_bbox']).backward()
    for name, parameter in roi_head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_ignored_rois_never_take_part():
    roi_head = build_roi_head(num=1000, nms_iou=None)
    feats, gt_instances, proposals = make_image(seed=1)
    roi_head.bbox_assigner.neg_iou_thr = 0.3  # 0.3 to 0.5 is assigned -1
    assigned = roi_head.bbox_assigner.assign(proposals, gt_instances).gt_inds
    assert (assigned == -1).any()

    result = mine(roi_head, feats, gt_instances, proposals)

    num_gts = len(gt_instances)
    taken = torch.cat([result.pos_inds, result.neg_inds]) - num_gts
    expected = set(range(-num_gts, 0)) | set(
        (assigned >= 0).nonzero().flatten().tolist()
    )
    assert set(taken.tolist()) == expected


def test_an_image_without_ground_truth_gives_background():
    roi_head = build_roi_head()
    feats, gt_instances, proposals = make_image(seed=0, num_gts=0)
    result = mine(roi_head, feats, gt_instances, proposals)
    assert len(result.pos_inds) == 0
    assert len(result.neg_inds) == 16


def test_an_image_without_proposals_trains_on_its_ground_truth():
    roi_head = build_roi_head()
    feats, gt_instances, _ = make_image(seed=0)
    empty = InstanceData(priors=torch.zeros(0, 4))
    result = mine(roi_head, feats, gt_instances, empty)
    assert sorted(result.pos_inds.tolist()) == [0, 1, 2, 3]
    assert len(result.neg_inds) == 0


def test_an_image_with_neither_gives_nothing():
    roi_head = build_roi_head()
    feats, gt_instances, _ = make_image(seed=0, num_gts=0)
    result = mine(roi_head, feats, gt_instances, InstanceData(priors=torch.zeros(0, 4)))
    assert isinstance(result, SamplingResult)
    assert len(result.priors) == 0


@pytest.mark.parametrize('nms_per_label', [False, True])
def test_a_batch_with_every_kind_of_image_has_finite_losses(nms_per_label):
    roi_head = build_roi_head(nms_per_label=nms_per_label)
    images = [make_image(0), make_image(1, num_gts=0), make_image(2)]
    images[2] = (*images[2][:2], InstanceData(priors=torch.zeros(0, 4)))
    samples = []
    for _, gt_instances, proposals in images:
        sample = DetDataSample(metainfo=dict(img_shape=(128, 128)))
        sample.gt_instances = gt_instances
        samples.append(sample)
        proposals.bboxes = proposals.pop('priors')
    feats = torch.cat([feats[0] for feats, _, _ in images])
    losses = roi_head.loss((feats,), [image[2] for image in images], samples)
    assert torch.isfinite(losses['loss_cls']) and torch.isfinite(losses['loss_bbox'])


def test_boxes_without_area_do_no_harm():
    roi_head = build_roi_head(num=1000)
    feats, gt_instances, proposals = make_image(seed=0)
    gt_instances.bboxes[1] = torch.tensor([30.0, 30.0, 30.0, 50.0])
    proposals.priors[:2] = torch.tensor([[9.0, 9, 9, 9], [9, 9, 3, 3]])
    result = mine(roi_head, feats, gt_instances, proposals)
    assert 1 not in result.pos_inds.tolist()
    assert torch.isfinite(result.losses).all()


def overflow(roi_head, image):
    """The losses of all RoIs, and the mined, under float16 autocast."""
    with torch.autocast('cpu', torch.float16):
        mining = mine(roi_head, *image).mining
    return mining.losses, mining.mined.tolist()


@pytest.mark.parametrize('bbox_head', [None, dict(type='IoULoss')])
def test_an_overflow_of_float16_is_left_to_the_scaler(bbox_head):
    """Of a head that takes the fast pass, and of one that takes the plain way."""
    if bbox_head is not None:
        bbox_head = head_config(loss_bbox=bbox_head, reg_decoded_bbox=True)
    roi_head, image = build_roi_head(bbox_head), make_image(0)
    image[0][0] *= torch.linspace(0, 40, 16)  # features grow from left to right
    fine = copy.deepcopy(roi_head.state_dict())
    with torch.no_grad():  # some RoIs overflow
        roi_head.bbox_head.fc_cls.weight.mul_(1e5)
    for _ in range(9):
        losses, mined = overflow(roi_head, image)
        finite = losses.isfinite()
        assert 0 < finite.sum() < len(losses)
        boxes = mine(roi_head, *image).mining.candidates.boxes
        by_hand = losses.where(finite, torch.tensor(-1.0)).tolist()
        assert mined == plain_select_hard_rois(by_hand, boxes.numpy(), 16)
    # An image in between that does not overflow starts the count anew.
    overflowing = copy.deepcopy(roi_head.state_dict())
    roi_head.load_state_dict(fine)
    overflow(roi_head, image)
    roi_head.load_state_dict(overflowing)
    for _ in range(9):
        overflow(roi_head, image)
    with pytest.raises(RuntimeError, match='AMP.*float16 in 10 images in a row'):
        overflow(roi_head, image)


def test_an_image_that_overflows_is_skipped_and_the_next_one_trains():
    roi_head = build_roi_head()
    feats, gt_instances, proposals = make_image(0)
    sample = DetDataSample(metainfo=dict(img_shape=(128, 128)))
    sample.gt_instances = gt_instances
    optimizer = torch.optim.SGD(roi_head.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler('cpu', init_scale=8.0)
    before = copy.deepcopy(roi_head.state_dict())
    for factor, trains in ((1e6, False), (1, True)):
        with torch.autocast('cpu', torch.float16):
            losses = roi_head.loss(
                [feats[0] * factor],
                [InstanceData(bboxes=proposals.priors.clone())],
                [sample],
            )
        optimizer.zero_grad()
        scaler.scale(losses['loss_cls'] + losses['loss_bbox']).backward()
        scaler.step(optimizer)
        scaler.update()
        for name, weight in roi_head.state_dict().items():
            assert weight.isfinite().all(), name
            assert trains or torch.equal(weight, before[name]), name
    assert not torch.equal(
        roi_head.bbox_head.fc_cls.weight, before['bbox_head.fc_cls.weight']
    )


def test_a_network_that_diverged_is_named():
    roi_head = build_roi_head()
    feats, gt_instances, proposals = make_image(seed=0)
    with torch.no_grad():
        roi_head.bbox_head.fc_cls.bias[0] = float('nan')
    with pytest.raises(ValueError, match='OHEMSampler.*NaN.*optimizer.lr'):
        mine(roi_head, feats, gt_instances, proposals)


def test_a_proposal_that_is_nan_is_named():
    roi_head = build_roi_head()
    feats, gt_instances, proposals = make_image(seed=0)
    proposals.priors[5, 2] = float('nan')
    with pytest.raises(ValueError, match='OHEMSampler got 1 of 84 RoIs with a NaN'):
        mine(roi_head, feats, gt_instances, proposals)


def test_changing_the_type_alone_is_enough():
    inherited = dict(pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True)
    with pytest.warns(UserWarning, match='ignores neg_pos_ub, pos_fraction'):
        roi_head = build_roi_head(**inherited)
    assert isinstance(roi_head.bbox_sampler, OHEMSampler)
    assert roi_head.bbox_sampler.num == 16


def test_a_clean_config_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        build_roi_head()


@pytest.mark.parametrize(
    'sampler, error, words',
    [
        (dict(nms_thr=0.7), TypeError, 'no key nms_thr'),
        (dict(num=0), ValueError, 'num'),
        (dict(num='64'), TypeError, 'num'),
        (dict(nms_iou=1.1), ValueError, 'nms_iou'),
    ],
)
def test_bad_keys_are_refused_when_built(sampler, error, words):
    with pytest.raises(error, match=words):
        build_roi_head(**sampler)


def test_a_lower_bound_for_background_is_warned_of():
    train_cfg = stage_config()
    train_cfg['assigner']['neg_iou_thr'] = (0.1, 0.5)
    with pytest.warns(UserWarning, match=r'train_cfg.rcnn.assigner.neg_iou_thr=\(0.1'):
        build_from(train_cfg)


def test_a_list_of_bounds_would_leave_no_background():
    train_cfg = stage_config()
    train_cfg['assigner']['neg_iou_thr'] = [0.1, 0.5]
    with pytest.raises(ValueError, match='assigner.neg_iou_thr=.*is a list'):
        build_from(train_cfg)


def test_what_has_no_loss_to_rank_by_is_told_where_the_sampler_belongs():
    sampler = dict(type='mmdet_ohem.OHEMSampler', num=256)
    with pytest.raises(TypeError, match='Linear has no bbox_head.*train_cfg.rcnn'):
        TASK_UTILS.build(dict(sampler, context=torch.nn.Linear(2, 2)))
    with pytest.raises(
        TypeError, match='built without one .context., as MMDetection3D'
    ):
        TASK_UTILS.build(sampler)


class HeadOfOneNumber(torch.nn.Module):
    """A bbox head whose loss is not made for single RoIs."""

    def loss(self, cls_score, bbox_pred, rois, *targets):
        return dict(loss=cls_score.sum())


@pytest.mark.parametrize('in_a_cascade', [False, True])
def test_a_head_whose_loss_cannot_be_unreduced_is_refused_when_built(in_a_cascade):
    roi_head = build_roi_head()
    bbox_head = HeadOfOneNumber()
    roi_head.bbox_head = torch.nn.ModuleList([bbox_head]) if in_a_cascade else bbox_head
    with pytest.raises(
        TypeError, match=r'HeadOfOneNumber.loss\(\) has no argument reduction'
    ):
        OHEMSampler(num=16, context=roi_head)


def test_the_registry_finds_it_without_a_custom_import():
    code = """
from mmdet.registry import TASK_UTILS
ours, theirs = TASK_UTILS.get('mmdet_ohem.OHEMSampler'), TASK_UTILS.get('OHEMSampler')
print(ours.__module__, theirs.__module__)
"""
    printed = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == [
        'mmdet_ohem.mining.ohem_sampler',
        'mmdet.models.task_modules.samplers.ohem_sampler',
    ]


def test_a_missing_num_is_named_by_its_key():
    with pytest.raises(TypeError, match=r'train_cfg.rcnn.sampler has no num: set it'):
        OHEMSampler(context=build_roi_head())


def warnings_of_mining(roi_head, images: int, num_proposals: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for i in range(images):
            mine(roi_head, *make_image(i, num_proposals=num_proposals))
    return [str(one.message) for one in caught if 'num=' in str(one.message)]


def test_a_num_that_takes_nearly_everything_is_said_once():
    """An image has its proposals, five for each of four objects, and the four."""
    roi_head = build_roi_head(num=40)
    assert warnings_of_mining(roi_head, 49, num_proposals=30) == []
    (said,) = warnings_of_mining(roi_head, 60, num_proposals=30)
    assert said.startswith('train_cfg.rcnn.sampler.num=40 is more than two thirds of ')

    # MMDetection's FPN configs take 512 of 1000 and an image's ground truth.
    assert warnings_of_mining(build_roi_head(num=29), 60, num_proposals=30) == []


def test_later_stages_of_a_cascade_are_not_asked_for_it():
    """They are given little more than num by the stage before."""
    roi_head = build_roi_head()
    roi_head.num_stages, roi_head.current_stage = 2, 1
    roi_head.bbox_assigner = [roi_head.bbox_assigner] * 2
    assert OHEMSampler(num=16, context=roi_head)._counts is None
    roi_head.current_stage = 0
    assert OHEMSampler(num=16, context=roi_head)._counts == []
