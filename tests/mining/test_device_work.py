"""Waits and operations of a GPU for one image, counted on the CPU.

Layers are narrow, which changes neither. RoIs, maps and images have the size
of the paper's and of MMDetection's.
"""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from support.device_work import counted
from support.roi_heads import stage_config

from mmdet_ohem.hooks import mining_log
from mmdet_ohem.mining import OHEMSampler, fast_pass
from mmdet_ohem.models import roi_pool

ROI_POOL = dict(type='mmdet_ohem.RoIPoolExtractor', output_size=7, out_channels=8)
FPN = dict(
    type='SingleRoIExtractor',
    roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
    out_channels=8,
    featmap_strides=[4, 8, 16, 32],
)
VGG_HEAD = dict(type='mmdet_ohem.VGGBBoxHead', in_channels=8, fc_out_channels=(64, 48))
FPN_HEAD = dict(type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=64)


@pytest.fixture(params=['VGG16', 'R50-FPN'])
def case(request, monkeypatch):
    """Most waits and operations that an image may take, a RoI head, and its image."""
    # As on a GPU, Ampere or newer, with heads of their true width.
    monkeypatch.setattr(fast_pass, 'CHUNK', fast_pass.CHUNK_ON_GPU)
    monkeypatch.setattr(roi_pool, 'BLOCK', roi_pool.BLOCK_ON_GPU)
    monkeypatch.setattr(fast_pass, 'has_fast_bfloat16', lambda device: True)
    is_vgg = request.param == 'VGG16'
    monkeypatch.setattr(fast_pass, 'bfloat16_pays', lambda *args: is_vgg)
    if is_vgg:
        return (25, 700), build(ROI_POOL, VGG_HEAD), make_image(2000, [16])
    return (15, 345), build(FPN, FPN_HEAD), make_image(1000, FPN['featmap_strides'])


def build(extractor: dict, bbox_head: dict):
    torch.manual_seed(0)
    roi_head = MODELS.build(
        ConfigDict(
            type='StandardRoIHead',
            bbox_roi_extractor=extractor,
            bbox_head=dict(bbox_head, roi_feat_size=7, num_classes=20),
            train_cfg=stage_config(num=64),
        )
    )
    roi_head.init_weights()
    with torch.no_grad():  # losses as far apart as those of a trained network
        roi_head.bbox_head.fc_cls.weight.mul_(30)
    return roi_head


def make_image(num_proposals: int, strides: list[int], width=1000, height=600):
    """Feature maps, ground truth and proposals of an image, small to large ones."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (num_proposals, 2)) * [width - 20, height - 20]
    sides = np.exp(rng.uniform(np.log(16), np.log(height), (num_proposals, 2)))
    far = np.minimum(corners + sides, [width - 1, height - 1])
    boxes = torch.from_numpy(np.hstack([corners, far])).float()
    gt_instances = InstanceData(bboxes=boxes[:6] + 3, labels=torch.arange(6))
    feats = [
        torch.from_numpy(rng.gamma(0.5, 1, (1, 8, height // s + 1, width // s + 1)))
        for s in strides
    ]
    return [feat.float() for feat in feats], gt_instances, InstanceData(priors=boxes)


def test_an_image_takes_few_waits_and_operations(case):
    (most_waits, most_operations), roi_head, (feats, gt_instances, proposals) = case
    sampler = roi_head.bbox_sampler
    assigned = roi_head.bbox_assigner.assign(proposals, gt_instances)
    with counted() as work:
        result = sampler.sample(assigned, proposals, gt_instances, feats=feats)
    print(work)
    assert len(result.priors) == 64
    assert work.waits.total() <= most_waits
    assert work.operations.total() <= most_operations


def test_the_log_waits_for_nothing(case):
    _, roi_head, (feats, gt_instances, proposals) = case
    assigned = roi_head.bbox_assigner.assign(proposals, gt_instances)
    sampler: OHEMSampler = roi_head.bbox_sampler
    mining = sampler.sample(assigned, proposals, gt_instances, feats=feats).mining
    for num in (64, None):
        with counted() as work:
            mining_log._sums(mining, num)
        assert work.waits.total() == 0


def test_what_waits_is_counted():
    """What PyTorch's sync debug mode reports on a GPU."""
    x = torch.arange(4.0)
    for waiting in (
        lambda: x.max().item(),
        lambda: bool((x > 1).any()),
        lambda: x[x > 1],
        lambda: (x > 1).nonzero(),
        lambda: x.unique(),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: x.new_tensor([1.0]),
        lambda: torch.tensor([1.0], device='cpu'),
        lambda: x[[0, 1]],
        lambda: x[x.long()[-1]],
        lambda: x.__setitem__(0, 1.0),
        lambda: x.__setitem__(torch.tensor([0]), 1.0),
        lambda: torch.repeat_interleave(x.long()),
    ):
        with counted() as work:
            waiting()
        assert work.waits.total() == 1, work
    for free in (
        lambda: x[1:] + x[-1],
        lambda: x.new_full((), 3),
        lambda: x[1:].fill_(2),
        lambda: x.__setitem__(slice(1), 1.0),
        lambda: x.__setitem__(x > 1, 1.0),
        lambda: x[torch.tensor([0, 1])],
        lambda: x.clone().index_fill_(0, torch.tensor([1]), 5.0),
    ):
        with counted() as work:
            free()
        assert work.waits.total() == 0, work
