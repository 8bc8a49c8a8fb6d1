"""The sampler in whole detectors: backbone, RPN and RoI head of MMDetection's configs.

tests/mining/test_shipped_heads.py runs every RoI head alone.
"""

import functools
import re

import numpy as np
import pytest
import torch
from mmdet.models.backbones.trident_resnet import TridentConv
from mmdet.registry import MODELS
from mmengine.config import Config
from support.shipped_heads import (
    CONFIGS,
    NUM_CLASSES,
    OURS,
    PAGE,
    SIDE,
    every_sample_checked,
    make_samples,
    nothing_is_foreground,
    read_model,
    shrink,
    shrink_shared_head,
    stages_of,
)
from support.tools import ROOT

NUM = 8  # TridentNet's RPN leaves about a dozen RoIs


def small_model(config_file: str):
    config = read_model(config_file)
    del config.data_preprocessor  # the images here are tensors
    shrink(config)
    if config.roi_head.get('shared_head'):
        shrink_shared_head(config.roi_head, config.train_cfg.rcnn)
        config.backbone.base_channels = 16
        config.rpn_head.in_channels = 256
    else:
        config.backbone.update(depth=18, base_channels=8)
        config.neck.in_channels = [8, 16, 32, 64]
    config.train_cfg.rpn_proposal.update(nms_pre=60, max_per_img=30)
    rcnn = config.train_cfg.rcnn
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.update(type=OURS, num=NUM)
    torch.manual_seed(0)
    model = MODELS.build(config)
    for module in model.modules():
        if isinstance(module, TridentConv):  # left empty, for a checkpoint to fill
            torch.nn.init.kaiming_uniform_(module.weight)
    return model.train()


def train_step(model, seed: int, num_gts: int = 3) -> None:
    images = np.random.default_rng(seed).standard_normal((2, 3, SIDE, SIDE), np.float32)
    samples = make_samples(seed, NUM_CLASSES, num_gts)
    loss, log = model.parse_losses(model(torch.from_numpy(images), samples, 'loss'))
    assert all(np.isfinite(float(value)) for value in log.values()), log
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad


@pytest.mark.parametrize(
    'config_file',
    [
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        'htc/htc_r50_fpn_1x_coco.py',
        'tridentnet/tridentnet_r50-caffe_1x_coco.py',
        'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    ],
)
def test_a_detector_trains(config_file):
    """Two steps, one without ground truth and one on background alone."""
    model = small_model(config_file)
    with every_sample_checked(model.roi_head) as sampled:
        for seed in range(2):
            train_step(model, seed)
    assert all(0 < call.num_mined <= NUM < call.num_rois for call in sampled[:2])
    assert any(0 < call.num_pos < call.num_mined for call in sampled)
    with every_sample_checked(model.roi_head) as sampled:
        train_step(model, seed=2, num_gts=0)
        nothing_is_foreground(model.roi_head)
        train_step(model, seed=3)
    assert all(call.num_pos == 0 < call.num_mined for call in sampled)


@pytest.mark.parametrize(
    'config_file, keys, head',
    [
        (
            'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
            ('train_cfg', 'rpn'),
            'RPNHead',
        ),
        ('rpn/rpn_r50_fpn_1x_coco.py', ('train_cfg', 'rpn'), 'RPNHead'),
        (
            'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
            ('train_cfg', 'rpn', 1),
            'StageCascadeRPNHead',
        ),
        (
            'guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py',
            ('train_cfg', 'rpn'),
            'GARPNHead',
        ),
        ('retinanet/retinanet_r50_fpn_1x_coco.py', ('train_cfg',), 'RetinaHead'),
        (
            'masktrack_rcnn/masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019.py',
            ('track_head', 'train_cfg'),
            'RoITrackHead',
        ),
    ],
)
def test_a_head_without_rois_to_classify_is_told_what_to_use(config_file, keys, head):
    config = Config.fromfile(CONFIGS / config_file).model
    del config.data_preprocessor
    shrink(config)
    functools.reduce(lambda place, key: place[key], keys, config).sampler = dict(
        type='mmdet_ohem.OHEMSampler', num=256
    )
    with pytest.raises(
        TypeError,
        match=f'{head} has no bbox_head; set it in train_cfg.rcnn.sampler, keep '
        'RandomSampler in train_cfg.rpn.sampler',
    ):
        MODELS.build(config)


def test_the_cascade_of_the_page_builds(tmp_path):
    written = re.search(r'```python\n(.*?)```', PAGE.read_text(), re.S).group(1)
    path = tmp_path / 'cascade_small_bccd.py'
    path.write_text(written.replace("_base_ = '", f"_base_ = '{ROOT}/configs/"))
    config = Config.fromfile(path)
    roi_head = MODELS.build(
        dict(config.model.roi_head, train_cfg=config.model.train_cfg.rcnn)
    )
    assert [sampler.stage for _, sampler, _ in stages_of(roi_head)] == [0, 1, 2]
    bounds = [assigner.pos_iou_thr for *_, assigner in stages_of(roi_head)]
    assert bounds == [0.5, 0.6, 0.7]
