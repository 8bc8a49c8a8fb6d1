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
from reference import select_hard_rois as plain_select_hard_rois

from mmdet_ohem import OHEMSampler

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
    with pytest.raises(TypeError, match='what builds it has no bbox_head'):
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
        'mmdet_ohem.ohem_sampler',
        'mmdet.models.task_modules.samplers.ohem_sampler',
    ]
