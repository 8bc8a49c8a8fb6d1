"""The fast read-only pass against the head's own loss() in full precision."""

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.models.task_modules import AssignResult
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from support.reference import random_boxes
from support.reference import select_hard_rois as plain_select_hard_rois

from mmdet_ohem.mining import OHEMSampler, each_roi_alone, fast_pass
from mmdet_ohem.mining.candidates import find_candidates
from mmdet_ohem.mining.fast_pass import FastPass, takes_fast_pass
from mmdet_ohem.mining.roi_losses import candidate_losses, read_only
from mmdet_ohem.mining.select import select_hard_rois
from mmdet_ohem.models import RoIPoolExtractor

NUM_CLASSES = 5


@pytest.fixture
def in_bfloat16(monkeypatch):
    """As for a large head on a device with fast bfloat16, wherever the tests run."""
    monkeypatch.setattr(fast_pass, 'MIN_WEIGHTS_FOR_BFLOAT16', 0)
    monkeypatch.setattr(fast_pass, 'has_fast_bfloat16', lambda device: True)


def build_roi_head(seed=0, pos_weight=-1, scale=30.0, **bbox_head):
    torch.manual_seed(seed)
    roi_head = MODELS.build(
        ConfigDict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='mmdet_ohem.RoIPoolExtractor', output_size=4, out_channels=16
            ),
            bbox_head=dict(
                dict(
                    type='mmdet_ohem.VGGBBoxHead',
                    in_channels=16,
                    roi_feat_size=4,
                    fc_out_channels=(64, 48),
                    num_classes=NUM_CLASSES,
                    loss_bbox=dict(type='SmoothL1Loss', beta=1.0),
                ),
                **bbox_head,
            ),
            train_cfg=dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=0.5,
                    neg_iou_thr=0.5,
                    min_pos_iou=0.5,
                    match_low_quality=False,
                ),
                sampler=dict(type='RandomSampler', num=16, pos_fraction=0.25),
                pos_weight=pos_weight,
            ),
        )
    )
    roi_head.init_weights()
    with torch.no_grad():  # losses as far apart as those of a trained network
        roi_head.bbox_head.fc_cls.weight.mul_(scale)
        roi_head.bbox_head.fc_reg.weight.mul_(scale)
    return roi_head


def mine(fast: FastPass, nms_iou=0.7, labels=None):
    """The 16 hardest candidates, and the loss of each candidate."""

    def select(losses):
        return select_hard_rois(losses, fast.candidates.boxes, 16, nms_iou, labels)

    return fast.mine(select, 16, nms_iou, labels)


def make_image(roi_head, seed, num_proposals=300, num_gts=4):
    """Candidates and a feature map of a 400 x 300 image."""
    rng = np.random.default_rng(seed)
    proposals = random_boxes(rng, num_proposals, 400, 300)
    gts = proposals[:num_gts] + rng.uniform(-4, 4, (num_gts, 4)).astype(np.float32)
    near = np.repeat(gts, 8, axis=0) + rng.normal(0, 6, (8 * num_gts, 4))
    priors = torch.from_numpy(np.concatenate([proposals, near]).astype(np.float32))
    gt_instances = InstanceData(
        bboxes=torch.from_numpy(gts),
        labels=torch.from_numpy(rng.integers(0, NUM_CLASSES, num_gts)),
    )
    proposals = InstanceData(priors=priors)
    assign_result: AssignResult = roi_head.bbox_assigner.assign(proposals, gt_instances)
    feats = torch.from_numpy(rng.gamma(0.5, 1, (1, 16, 19, 25))).float()
    return find_candidates(assign_result, proposals, gt_instances), [feats]


def rows_through_head(roi_head):
    """How many RoIs each later call of the bbox head gets, and in which precision."""
    calls = []

    def record(module, args):
        output = torch.nn.functional.linear(args[0].flatten(1), torch.eye(1, 256))
        calls.append((len(args[0]), str(output.dtype).removeprefix('torch.')))

    roi_head.bbox_head.register_forward_pre_hook(record)
    return calls


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(reg_class_agnostic=True),
        dict(loss_bbox=dict(type='L1Loss', loss_weight=2.0)),
        dict(loss_cls=dict(type='CrossEntropyLoss', loss_weight=0.5)),
        dict(loss_cls=dict(type='CrossEntropyLoss', class_weight=[1.0] * 5 + [0.3])),
        dict(pos_weight=3),
    ],
    ids=str,
)
@pytest.mark.parametrize('num_gts', [0, 4])
def test_losses_are_those_of_the_head(settings, num_gts):
    roi_head = build_roi_head(**settings)
    candidates, feats = make_image(roi_head, seed=1, num_gts=num_gts)
    assert (len(candidates.pos_inds) > 0) == (num_gts > 0)
    expected = candidate_losses(roi_head, candidates, feats)
    mined, losses = mine(FastPass(roi_head, candidates, feats))
    # Matrix products of other RoIs beside a RoI may round in another order.
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    boxes = candidates.boxes.numpy()
    assert mined.tolist() == plain_select_hard_rois(losses.tolist(), boxes, 16)


@pytest.mark.parametrize('nms_iou', [0.7, 0.3, None])
@pytest.mark.parametrize('per_label', [False, True])
def test_bfloat16_mines_what_float32_mines(in_bfloat16, nms_iou, per_label):
    """60 images a case, of heads from flat to steep."""
    rescored = []
    for seed in range(60):
        print('seed', seed)
        roi_head = build_roi_head(seed, scale=[1, 10, 100][seed % 3])
        candidates, feats = make_image(roi_head, seed, num_gts=seed % 4)
        labels = candidates.labels if per_label else None
        full = candidate_losses(roi_head, candidates, feats)
        calls = rows_through_head(roi_head)
        fast = FastPass(roi_head, candidates, feats)
        mined, losses = mine(fast, nms_iou, labels)

        expected = plain_select_hard_rois(
            full.tolist(), candidates.boxes.numpy(), 16, nms_iou, labels
        )
        assert set(mined.tolist()) == set(expected)
        np.testing.assert_allclose(losses[mined], full[mined], rtol=1e-5, atol=1e-5)
        assert calls[0] == (len(fast.rois), 'bfloat16')
        assert {precision for _, precision in calls[1:]} == {'float32'}
        rescored.append(sum(rows for rows, _ in calls[1:]) / len(fast.rois))
    assert np.mean(rescored) < 0.5, 'most are never scored in full precision'


def test_the_bound_on_the_error_holds_with_room(in_bfloat16):
    """All RoIs against the few whose error mining looks at: three times, not four."""
    for seed in range(60):
        print('seed', seed)
        roi_head = build_roi_head(seed, scale=[1, 10, 100][seed % 3])
        candidates, feats = make_image(roi_head, seed)
        fast = FastPass(roi_head, candidates, feats)
        full = candidate_losses(roi_head, candidates, feats)
        every = torch.arange(len(fast.rois))
        with read_only(roi_head):
            rough = fast._losses(fast._outputs(every, rough=True))
        errors = (rough - full).abs()
        hardest = plain_select_hard_rois(rough.tolist(), candidates.boxes.numpy(), 16)
        spread = rough.argsort(descending=True)[:: -(-len(rough) // 32)].tolist()
        assert errors.max() < 3 * errors[hardest + spread].max()


def test_coinciding_rois_go_through_the_head_once():
    roi_head = build_roi_head()
    candidates, feats = make_image(roi_head, seed=1)
    corners = (candidates.boxes / 16).numpy()
    corners = np.floor(corners + 0.5).astype(int)  # no corner is negative or half-way
    distinct = len({tuple(row) for row in corners})
    assert distinct < len(candidates)
    calls = rows_through_head(roi_head)
    mine(FastPass(roi_head, candidates, feats))
    assert calls == [(distinct, 'float32')]


def test_the_head_sees_few_rois_at_a_time(monkeypatch):
    roi_head = build_roi_head()
    candidates, feats = make_image(roi_head, seed=1)
    whole = FastPass(roi_head, candidates, feats)
    mined, losses = mine(whole)
    monkeypatch.setattr(fast_pass, 'CHUNK', 50)
    calls = rows_through_head(roi_head)
    in_chunks = mine(FastPass(roi_head, candidates, feats))
    assert max(rows for rows, _ in calls) == 50
    assert sum(rows for rows, _ in calls) == len(whole.rois)
    np.testing.assert_allclose(in_chunks[1], losses, rtol=1e-5, atol=1e-5)
    assert set(in_chunks[0].tolist()) == set(mined.tolist())


def test_a_network_that_tells_no_rois_apart_is_scored_in_full(in_bfloat16):
    """Losses that differ by less than bfloat16 can tell take a few turns, not many."""
    roi_head = build_roi_head(scale=1e-4)
    candidates, feats = make_image(roi_head, seed=1)
    full = candidate_losses(roi_head, candidates, feats)
    calls = rows_through_head(roi_head)
    fast = FastPass(roi_head, candidates, feats)
    mined, losses = mine(fast)
    boxes = candidates.boxes.numpy()
    assert set(mined.tolist()) == set(
        plain_select_hard_rois(losses.tolist(), boxes, 16)
    )
    np.testing.assert_allclose(losses[mined], full[mined], rtol=1e-5, atol=1e-5)
    assert len(calls) <= 1 + fast_pass.MAX_TURNS
    assert sum(rows for rows, _ in calls) <= 2 * len(fast.rois)


def test_under_amp_there_is_one_pass(in_bfloat16):
    roi_head = build_roi_head()
    candidates, feats = make_image(roi_head, seed=1)
    calls = rows_through_head(roi_head)
    fast = FastPass(roi_head, candidates, feats)
    with torch.autocast('cpu', torch.bfloat16):
        mined, losses = mine(fast)
    assert calls == [(len(fast.rois), 'bfloat16')]
    assert losses.dtype == torch.float32 and len(mined) == 16


def test_few_rois_are_scored_once(in_bfloat16):
    """Where most RoIs are mined a first pass would save nothing."""
    roi_head = build_roi_head()
    candidates, feats = make_image(roi_head, seed=1, num_proposals=20, num_gts=1)
    calls = rows_through_head(roi_head)
    mine(FastPass(roi_head, candidates, feats))
    assert [precision for _, precision in calls] == ['float32']


def test_bfloat16_is_for_large_heads():
    vgg16 = 512 * 7 * 7 * 4096 + 4096 * 4096
    shared_2fc = 256 * 7 * 7 * 1024 + 1024 * 1024
    assert fast_pass.bfloat16_pays('cuda', vgg16, 2000)
    assert not fast_pass.bfloat16_pays('cuda', shared_2fc, 1000)
    for weights in (vgg16, shared_2fc):
        assert fast_pass.bfloat16_pays('cpu', weights, 1000)
    assert not fast_pass.bfloat16_pays('cpu', 2**20, 10**6)


@pytest.mark.parametrize(
    'settings',
    [
        dict(loss_cls=dict(type='FocalLoss', use_sigmoid=True)),
        dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True)),
        dict(loss_bbox=dict(type='GIoULoss'), reg_decoded_bbox=True),
        dict(loss_bbox=dict(type='BalancedL1Loss')),
    ],
    ids=str,
)
def test_other_losses_are_left_to_the_head(settings):
    assert takes_fast_pass(build_roi_head(), None)
    assert not takes_fast_pass(build_roi_head(**settings), None)


class RelatesRoIs(Shared2FCBBoxHead):
    """Scores of a RoI go down where the others' are high."""

    def forward(self, x):
        scores, deltas = super().forward(x)
        return scores - 0.9 * scores.mean(dim=0), deltas


class OwnTargets(Shared2FCBBoxHead):
    def _get_targets_single(self, *args, **kwargs):
        return super()._get_targets_single(*args, **kwargs)


class OwnLossAndTarget(Shared2FCBBoxHead):
    """Which MMDetection's RoI heads call in training."""

    def loss_and_target(self, *args, **kwargs):
        return super().loss_and_target(*args, **kwargs)


class OwnExtractor(RoIPoolExtractor):
    """Features of a RoI less the mean of all."""

    def forward(self, feats, rois, roi_scale_factor=None):
        pooled = super().forward(feats, rois, roi_scale_factor)
        return pooled - pooled.mean(dim=0)


class OwnLayer(torch.nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0)


def shared_2fc(cls) -> dict:
    return dict(
        type=cls,
        in_channels=16,
        roi_feat_size=4,
        fc_out_channels=24,
        num_classes=NUM_CLASSES,
        loss_bbox=dict(type='SmoothL1Loss', beta=1.0),
    )


def test_a_head_that_relates_the_rois_is_not_split():
    """Three chunks of 512 would have three means."""
    seed = 11
    roi_head = build_roi_head()
    torch.manual_seed(seed)
    roi_head.bbox_head = MODELS.build(shared_2fc(RelatesRoIs))
    torch.nn.init.normal_(roi_head.bbox_head.fc_cls.weight)
    candidates, feats = make_image(roi_head, seed, num_proposals=1500)
    assert len(candidates) > 2 * fast_pass.CHUNK
    sampler = OHEMSampler(num=64, context=roi_head)
    _, losses = sampler._rank(candidates, feats)
    with torch.no_grad():
        rois = torch.cat([torch.zeros(len(candidates), 1), candidates.boxes], dim=1)
        scores, _ = roi_head.bbox_head(roi_head.bbox_roi_extractor(feats, rois))
    num_pos = len(candidates.pos_inds)
    background = -scores.log_softmax(dim=1)[num_pos:, NUM_CLASSES]
    np.testing.assert_allclose(losses[num_pos:], background, rtol=1e-4, atol=1e-5)


def test_only_what_is_known_is_split():
    known = build_roi_head()
    assert takes_fast_pass(known, None)
    known.bbox_head = MODELS.build(shared_2fc(Shared2FCBBoxHead))
    assert takes_fast_pass(known, None)

    for bbox_head in (RelatesRoIs, OwnTargets, OwnLossAndTarget):
        roi_head = build_roi_head()
        roi_head.bbox_head = MODELS.build(shared_2fc(bbox_head))
        assert not takes_fast_pass(roi_head, None), bbox_head

    roi_head = build_roi_head()
    roi_head.bbox_roi_extractor = OwnExtractor(output_size=4, out_channels=16)
    assert not takes_fast_pass(roi_head, None)

    for layer in (OwnLayer(), torch.nn.BatchNorm1d(48, track_running_stats=False)):
        roi_head = build_roi_head()
        roi_head.bbox_head.dropout = layer
        assert not takes_fast_pass(roi_head, None), layer


def test_a_forward_that_is_marked_is_known():
    class Marked(Shared2FCBBoxHead):
        @each_roi_alone
        def forward(self, x):
            return super().forward(x)

    class Unmarked(Marked):
        def forward(self, x):
            return super().forward(x)

    roi_head = build_roi_head()
    for bbox_head, is_known in ((Marked, True), (Unmarked, False)):
        roi_head.bbox_head = MODELS.build(shared_2fc(bbox_head))
        assert takes_fast_pass(roi_head, None) == is_known
