import copy

import numpy as np
import pytest
import torch
from mmdet.models.task_modules import SamplingResult
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from support.reference import random_boxes
from torch import nn

from mmdet_ohem.mining.candidates import find_candidates
from mmdet_ohem.mining.roi_losses import candidate_losses, loss_per_roi, read_only

NUM_CLASSES = 3
SOFTMAX = dict(type='CrossEntropyLoss')
SMOOTH_L1 = dict(type='SmoothL1Loss', beta=1.0)
SEESAW = dict(type='SeesawLoss', num_classes=NUM_CLASSES)
GHM = dict(type='GHMC', bins=10, use_sigmoid=True)


def build_roi_head(
    loss_cls=SOFTMAX,
    loss_bbox=SMOOTH_L1,
    sampler='mmdet_ohem.OHEMSampler',
    bbox_head=None,
    **changes,
):
    """With Shared2FCBBoxHead, changed, or with another ``bbox_head`` as a whole."""
    torch.manual_seed(0)
    config = dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=1),
            out_channels=4,
            featmap_strides=[8],
        ),
        bbox_head=bbox_head
        or dict(
            dict(
                type='Shared2FCBBoxHead',
                in_channels=4,
                fc_out_channels=8,
                roi_feat_size=3,
                num_classes=NUM_CLASSES,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_stds=(0.1, 0.1, 0.2, 0.2)
                ),
                loss_cls=loss_cls,
                loss_bbox=loss_bbox,
                # Large outputs, so that losses differ much from RoI to RoI.
                init_cfg=dict(type='Normal', layer='Linear', std=0.5),
            ),
            **changes,
        ),
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
            ),
            sampler=dict(type=sampler, num=16, pos_fraction=0.25),
            pos_weight=-1,
        ),
    )
    roi_head = MODELS.build(ConfigDict(config))
    roi_head.init_weights()
    return roi_head.train()


def make_image(num_gts: int = 4):
    """A feature map of stride 8, proposals on and far from ground truth."""
    rng = np.random.default_rng(0)
    gt = random_boxes(rng, num_gts, 128, 128)
    near = gt.repeat(3, axis=0) + rng.uniform(-4, 4, (3 * num_gts, 4))
    boxes = np.concatenate([near, random_boxes(rng, 20, 128, 128)])
    gt_instances = InstanceData(
        bboxes=torch.from_numpy(gt),
        labels=torch.from_numpy(rng.integers(NUM_CLASSES, size=num_gts)),
    )
    proposals = InstanceData(priors=torch.from_numpy(boxes.astype(np.float32)))
    feats = [torch.from_numpy(rng.random((1, 4, 16, 16), np.float32))]
    return feats, gt_instances, proposals


def score(roi_head, feats, gt_instances, proposals):
    assigned = roi_head.bbox_assigner.assign(proposals, gt_instances)
    candidates = find_candidates(assigned, proposals, gt_instances)
    return candidates, candidate_losses(roi_head, candidates, feats)


def each_alone(candidates) -> list[SamplingResult]:
    """A mini-batch of one RoI for each candidate."""
    return [
        candidates.sampling_result(*candidates.foreground_first(torch.tensor([i])))
        for i in range(len(candidates))
    ]


def loss_in_training(roi_head, feats, sampling_result) -> float:
    losses = roi_head.bbox_loss(feats, [sampling_result])['loss_bbox']
    return sum(float(value) for key, value in losses.items() if 'loss' in key)


@pytest.mark.parametrize(
    'loss_cls',
    [
        SOFTMAX,
        dict(SOFTMAX, loss_weight=2.0, class_weight=[1.0, 2.0, 3.0, 0.5]),
        dict(SOFTMAX, use_sigmoid=True),
        dict(type='FocalLoss', use_sigmoid=True),
        dict(SEESAW, p=0.0),  # p > 0 weighs by what else is in the mini-batch
    ],
    ids=['softmax', 'weighted softmax', 'sigmoid', 'focal', 'seesaw'],
)
@pytest.mark.parametrize(
    'loss_bbox, bbox_head',
    [
        (SMOOTH_L1, {}),
        (dict(type='L1Loss', loss_weight=0.5), {}),
        (dict(type='BalancedL1Loss'), {}),
        (SMOOTH_L1, dict(reg_class_agnostic=True)),
        (dict(type='IoULoss', mode='linear'), dict(reg_decoded_bbox=True)),
        (dict(type='GIoULoss'), dict(reg_decoded_bbox=True, reg_class_agnostic=True)),
        (dict(type='CIoULoss'), dict(reg_decoded_bbox=True)),
    ],
    ids=['smooth l1', 'l1', 'balanced l1', 'agnostic', 'iou', 'giou agnostic', 'ciou'],
)
def test_a_loss_is_that_of_training_on_this_roi_alone(loss_cls, loss_bbox, bbox_head):
    roi_head = build_roi_head(loss_cls, loss_bbox, **bbox_head)
    image = make_image()
    candidates, losses = score(roi_head, *image)
    assert 0 < len(candidates.pos_inds) < len(candidates)
    expected = [
        loss_in_training(roi_head, image[0], alone) for alone in each_alone(candidates)
    ]
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-4, atol=1e-5)


SABL = dict(
    type='SABLHead',
    num_cls_fcs=1,
    num_reg_fcs=1,
    cls_in_channels=4,
    reg_in_channels=4,
    roi_feat_size=3,
    cls_out_channels=8,
    reg_offset_out_channels=8,
    reg_cls_out_channels=8,
    num_classes=NUM_CLASSES,
    bbox_coder=dict(type='BucketingBBoxCoder', num_buckets=6, scale_factor=1.7),
    loss_bbox_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
    loss_bbox_reg=dict(type='SmoothL1Loss', beta=0.1, loss_weight=1.0),
)


def test_the_four_sides_of_a_sabl_head_count_once():
    roi_head = build_roi_head(bbox_head=SABL)
    image = make_image()
    candidates, losses = score(roi_head, *image)
    expected = [
        loss_in_training(roi_head, image[0], alone) for alone in each_alone(candidates)
    ]
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-4, atol=1e-5)


def outputs_of(roi_head, feats, candidates):
    rois = torch.cat([torch.zeros(len(candidates), 1), candidates.boxes], dim=1)
    with torch.no_grad():
        outputs = roi_head._bbox_forward(feats, rois)
    return outputs['cls_score'].double().numpy(), outputs['bbox_pred'].double().numpy()


def test_seesaw_counts_all_candidates_and_forgets_them():
    """Seesaw loss (Wang et al., CVPR 2021), equations 2 to 6."""
    p, q = 0.8, 2.0
    roi_head = build_roi_head(dict(SEESAW, p=p, q=q))
    seen = torch.tensor([9.0, 1.0, 30.0, 50.0])
    roi_head.bbox_head.loss_cls.cum_samples.copy_(seen)
    feats, gt_instances, proposals = make_image()
    roi_head.bbox_head.fc_reg.weight.data.zero_()  # box losses are known then
    roi_head.bbox_head.fc_reg.bias.data.zero_()
    candidates, losses = score(roi_head, feats, gt_instances, proposals)

    assert torch.equal(roi_head.bbox_head.loss_cls.cum_samples, seen)
    num_pos = len(candidates.pos_inds)
    labels = candidates.labels[:num_pos].numpy()
    counts = seen[:NUM_CLASSES].numpy() + np.bincount(labels, minlength=NUM_CLASSES)
    logits, _ = outputs_of(roi_head, feats, candidates)
    targets = roi_head.bbox_head.bbox_coder.encode(
        candidates.boxes[:num_pos], candidates.sampling_result().pos_gt_bboxes
    ).numpy()
    for i in range(len(candidates)):
        exp = np.exp(logits[i, NUM_CLASSES:])
        expected = -np.log(exp[0 if i < num_pos else 1] / exp.sum())
        if i < num_pos:
            own, exp = labels[i], np.exp(logits[i, :NUM_CLASSES])
            mitigation = np.minimum(counts / counts[own], 1) ** p
            compensation = np.maximum(exp / exp[own], 1) ** q
            weights = mitigation * compensation  # 1 for its own class
            expected += -np.log(exp[own] / (weights * exp).sum())
            off = np.abs(targets[i])
            expected += np.where(off < 1, off**2 / 2, off - 0.5).sum()
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4)


@pytest.mark.parametrize('momentum', [0, 0.75])
def test_ghm_takes_the_density_of_all_candidates(momentum):
    """GHM-C (Li et al., AAAI 2019): cross entropy over the number of outputs whose
    gradient lies in the same tenth."""
    roi_head = build_roi_head(dict(GHM, momentum=momentum))
    loss_cls = roi_head.bbox_head.loss_cls
    before = torch.full((10,), 5.0)
    if momentum:
        loss_cls.acc_sum.copy_(before)
    feats, gt_instances, proposals = make_image(num_gts=0)
    candidates, losses = score(roi_head, feats, gt_instances, proposals)
    if momentum:
        assert torch.equal(loss_cls.acc_sum, before)

    logits, _ = outputs_of(roi_head, feats, candidates)
    target = np.zeros_like(logits)
    # As MMDetection has it: background is a class of its own.
    target[:, NUM_CLASSES] = 1
    p = 1 / (1 + np.exp(-logits))
    tenth = np.minimum((np.abs(p - target) * 10).astype(int), 9)
    counts = np.bincount(tenth.ravel(), minlength=10)
    used = (counts > 0).sum()
    if momentum:
        counts = momentum * 5.0 + (1 - momentum) * counts
    entropy = -np.where(target == 1, np.log(p), np.log(1 - p))
    expected = (entropy * p.size / counts[tenth] / used).sum(axis=1)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-4)


def test_ghm_r_ranks_too():
    roi_head = build_roi_head(loss_bbox=dict(type='GHMR', momentum=0.7))
    candidates, losses = score(roi_head, *make_image())
    assert len(losses) == len(candidates) and losses.isfinite().all()
    assert not roi_head.bbox_head.loss_bbox.acc_sum.any()


class ReducedLoss(torch.nn.Module):
    """A loss that returns one number whatever is asked of it."""

    def forward(self, pred, target, weight, avg_factor=None, reduction_override=None):
        return pred.abs().mean()


@pytest.mark.parametrize('key', ['loss_cls', 'loss_bbox'])
def test_a_loss_that_stays_reduced_is_refused_by_its_key(key):
    roi_head = build_roi_head()
    setattr(roi_head.bbox_head, key, ReducedLoss())
    feats, gt_instances, proposals = make_image()
    assigned = roi_head.bbox_assigner.assign(proposals, gt_instances)
    with pytest.raises(ValueError, match=rf'roi_head.bbox_head.{key} has shape \(\)'):
        roi_head.bbox_sampler.sample(assigned, proposals, gt_instances, feats=feats)


@pytest.mark.parametrize('num_gts', [0, 4])
def test_eqlv2_stays_reduced(num_gts):
    roi_head = build_roi_head(dict(type='EQLV2Loss', num_classes=NUM_CLASSES))
    buffers = copy.deepcopy(dict(roi_head.named_buffers()))
    feats, gt_instances, proposals = make_image(num_gts)
    assigned = roi_head.bbox_assigner.assign(proposals, gt_instances)
    with pytest.raises(ValueError, match='roi_head.bbox_head.loss_cls has shape'):
        roi_head.bbox_sampler.sample(assigned, proposals, gt_instances, feats=feats)
    for name, value in roi_head.named_buffers():
        assert torch.equal(value, buffers[name]), name


@pytest.mark.parametrize(
    'loss_cls, error',
    [
        (dict(SOFTMAX, use_sigmoid=True), RuntimeError),
        (dict(type='FocalLoss', use_sigmoid=True), RuntimeError),
        (GHM, RuntimeError),
        (SEESAW, KeyError),
    ],
    ids=['sigmoid', 'focal', 'ghm', 'seesaw'],
)
def test_mmdetections_own_fails_where_this_one_ranks(loss_cls, error):
    for sampler in ('mmdet_ohem.OHEMSampler', 'OHEMSampler'):
        roi_head = build_roi_head(loss_cls, sampler=sampler)
        feats, gt_instances, proposals = make_image()
        assigned = roi_head.bbox_assigner.assign(proposals, gt_instances)
        arguments = (assigned, proposals, gt_instances)
        if sampler == 'OHEMSampler':
            with pytest.raises(error):
                roi_head.bbox_sampler.sample(*arguments, feats=feats)
        else:
            result = roi_head.bbox_sampler.sample(*arguments, feats=feats)
            assert 0 < len(result.priors) <= 16


def test_losses_are_added_up_by_roi():
    """Three RoIs, the first of them foreground, as bbox heads return their losses."""
    softmax = dict(loss_cls=torch.tensor([1.0, 2.0, 3.0]), acc=torch.tensor([50.0]))
    smooth_l1 = dict(loss_bbox=torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    assert loss_per_roi(softmax | smooth_l1, 3, 1).tolist() == [2.0, 2.0, 3.0]

    sigmoid = dict(loss_cls=torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.5, 0.5]]))
    iou = dict(loss_bbox=torch.tensor([0.25]))
    assert loss_per_roi(sigmoid | iou, 3, 1).tolist() == [2.25, 2.0, 1.0]

    # SABL: four sides of a RoI in consecutive rows, seven buckets.
    buckets = dict(loss_bbox_cls=torch.arange(12.0).reshape(12, 1).expand(12, 7) / 7)
    expected = torch.tensor([(0 + 1 + 2 + 3) / 4, (4 + 5 + 6 + 7) / 4, 38 / 4])
    assert torch.allclose(loss_per_roi(buckets, 3, 1), expected)

    # Without a positive, heads return a bare or an empty zero.
    for nothing in (torch.tensor(0.0), torch.zeros(0), torch.zeros(0, 4)):
        background = loss_per_roi(softmax | dict(loss_bbox=nothing), 3, 0)
        assert background.tolist() == [1.0, 2.0, 3.0]


def test_losses_that_cannot_rank_are_refused_by_name():
    softmax = dict(loss_cls=torch.rand(3))
    for reduced in (torch.tensor(0.7), torch.rand(2), torch.zeros(0)):
        with pytest.raises(ValueError, match='roi_head.bbox_head.loss_iou has shape'):
            loss_per_roi(softmax | dict(loss_iou=reduced), 3, 1)
    with pytest.raises(ValueError, match='roi_head.bbox_head.loss_cls has shape'):
        loss_per_roi(dict(loss_cls=torch.tensor(0.7)), 3, 0)
    with pytest.raises(ValueError, match='no loss to rank'):
        loss_per_roi(dict(acc=torch.rand(1)), 3, 1)
    with pytest.raises(ValueError, match="'loss_cls' as list"):
        loss_per_roi(dict(loss_cls=[torch.rand(3)]), 3, 1)


class Counting(nn.Module):
    """Buffers that a call changes: one in place (seesaw), one bound anew."""

    def __init__(self):
        super().__init__()
        self.register_buffer('in_place', torch.zeros(2))
        self.register_buffer('bound_anew', torch.zeros(2))

    def forward(self, x):
        self.in_place += 1
        self.bound_anew = self.bound_anew + 1
        return x


def test_read_only_leaves_nothing_behind():
    network = nn.Sequential(
        nn.Linear(4, 4),
        nn.BatchNorm1d(4),
        nn.Dropout(0.5),
        nn.BatchNorm1d(4),
        Counting(),
    )
    network[3].eval()
    network(torch.rand(3, 4)).sum().backward()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    buffers = dict(network.named_buffers())
    gradients = [p.grad.clone() for p in network.parameters()]
    modes = [layer.training for layer in network.modules()]
    random_state = torch.get_rng_state()

    with read_only(network):
        first = network(torch.ones(3, 4))
        second = network(torch.ones(3, 4))

    assert not first.requires_grad
    assert torch.equal(first, second), 'dropout took part'
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key
    for key, value in network.named_buffers():
        assert value is buffers[key], key
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert [layer.training for layer in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)


def test_read_only_can_draw_dropout_and_survives_an_error():
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(100))
    with pytest.raises(KeyError), read_only(network, dropout=True):
        assert (network(torch.ones(1, 100)) == 0).any()
        assert not network[1].training
        raise KeyError
    assert network[1].training
