"""Every config against one table of the recipe, and each of them run.

A new config needs a row in RECIPES: what it should be, by the names in FACTS.
"""

import itertools
import json
import os
import re
from pathlib import Path
from pprint import pformat

import pytest
import torch
from mmdet.datasets import CocoDataset, VOCDataset
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from support import small_data
from support.tools import ROOT

from mmdet_ohem.hooks import box_target_statistics
from mmdet_ohem.runs.check_data import check_data

CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))

# ------------------------------------------------------------------------ the recipe

FAST_RCNN = dict(  # of the paper and the release, with VGG16 on VOC07
    network='mmdet_ohem.VGG16',
    frozen_stages=2,
    head=(4096, 4096),
    pooled=7,
    weights='mmdet_ohem.TorchvisionVGG16',
    bbox_head='mmdet_ohem.VGGBBoxHead',
    train=['VOC2007/ImageSets/Main/trainval.txt'],
    test='VOC2007/ImageSets/Main/test.txt',
    metric=dict(type='VOCMetric', metric='mAP', eval_mode='11points'),
    classes=20,
    filtered=False,
    scales=[(1000, 600)],
    flip=0.5,
    N=2,
    B=128,
    bg_lo=0.1,
    crowd_iof=-1,  # VOC has no crowds
    sampler='RandomSampler',
    pos_fraction=0.25,
    lr=0.001,
    momentum=0.9,
    decay=0.0005,
    biases=dict(lr_mult=2, decay_mult=0),
    iterations=40000,
    steps=[30000],
    box_coding=((0, 0, 0, 0), (0.1, 0.1, 0.2, 0.2)),
    loss_bbox=('SmoothL1Loss', 1.0),
    test_nms=0.3,
    # the release's script: --det_thresh 0.00001 --num_dets 2000
    score_thr=0.00001,
    max_per_img=2000,
    tta_max_per_img=2000,
    load_from=None,
    computes_statistics=False,
)
VGGM = dict(
    network='mmdet_ohem.VGGCNNM1024',
    frozen_stages=1,
    head=(4096, 1024),
    pooled=6,
    weights='mmdet_ohem.ConvertedWeights',
)
CAFFE = dict(weights='mmdet_ohem.ConvertedWeights')
NO_BOUND = dict(bg_lo=0)
OHEM = dict(
    sampler='mmdet_ohem.OHEMSampler',
    bg_lo=0,
    pos_fraction=None,
    nms_per_label=False,
    readonly_dropout=False,
)
RELEASE = dict(
    OHEM,
    weights='mmdet_ohem.ConvertedWeights',
    nms_per_label=True,
    readonly_dropout=True,
    images_at_a_time=1,
    bbox_head='mmdet_ohem.ClasswiseVGGBBoxHead',
    computes_statistics=True,
)
ALL = dict(B=2048, bg_lo=0, pos_fraction=1)
VOC0712 = dict(
    train=[f'VOC{year}/ImageSets/Main/trainval.txt' for year in (2007, 2012)],
    iterations=80000,
    steps=[30000, 60000],
)
VOC12 = dict(
    train=['VOC2012/ImageSets/Main/trainval.txt'],
    test='VOC2012/ImageSets/Main/test.txt',
    metric=dict(type='mmdet_ohem.VOCServerFiles'),
    iterations=200000,
    steps=[40000, 80000, 120000, 160000],
)
VOC07PP12 = dict(
    VOC12,
    train=[
        'VOC2007/ImageSets/Main/trainval.txt',
        'VOC2007/ImageSets/Main/test.txt',
        'VOC2012/ImageSets/Main/trainval.txt',
    ],
)
COCO = dict(
    train=['annotations/instances_train2014.json'],
    test='annotations/instances_val2014.json',
    metric=dict(
        type='CocoMetric',
        ann_file='data/coco/annotations/instances_val2014.json',
        metric='bbox',
    ),
    classes=80,
    crowd_iof=0.7,
    max_per_img=100,
    tta_max_per_img=100,
    iterations=240000,
    steps=[160000],
)
TESTDEV = dict(
    test='annotations/image_info_test-dev2015.json',
    metric=dict(
        type='CocoMetric',
        ann_file='data/coco/annotations/image_info_test-dev2015.json',
        metric='bbox',
        format_only=True,
        outfile_prefix='test-dev',
    ),
)
COCO_TRAINVAL = {
    **COCO,
    **TESTDEV,
    'train': [f'annotations/instances_{split}2014.json' for split in ('train', 'val')],
}
MS = dict(  # +M; training draws one, testing with --tta takes all
    dict.fromkeys(
        ['scales', 'tta_scales'], [(1000, side) for side in (480, 576, 688, 864, 900)]
    ),
    tta_max_per_img=None,  # there are no detections of several views to merge
)
RPN = dict(  # py-faster-rcnn's
    rpn_anchors=([8, 16, 32], [0.5, 1.0, 2.0], [16]),
    rpn_sampler=('RandomSampler', 256, 0.5),
    rpn_bounds=(0.7, 0.3),
    rpn_loss_bbox=('SmoothL1Loss', 1 / 9),
    rpn_kept=(2000, 300),
    iterations=70000,
    steps=[50000],
)
RPN_HAS = (
    'network frozen_stages train test filtered scales flip lr momentum decay'.split()
)
R50 = dict(
    network='ResNet',
    train=['annotations/instances_train2017.json'],
    test='annotations/instances_val2017.json',
    classes=80,
    N=2,
    B=1024,
)
SMALL = dict(  # not the paper's
    network='ResNet',
    head=128,
    train=['ImageSets/Main/trainval.txt'],
    test='ImageSets/Main/test.txt',
    metric=dict(type='VOCMetric', metric='mAP', eval_mode='area'),
    classes=3,
    scales=[(400, 300)],
    flip=0.5,
    N=2,
    B=128,
    bg_lo=0.1,
    sampler='RandomSampler',
    pos_fraction=0.25,
    lr=0.04,
    iterations=1200,
    steps=[900],
    test_nms=0.3,
    score_thr=0.05,
    max_per_img=100,
)
RFCN = dict(  # of py-R-FCN with ResNet-50
    {
        fact: FAST_RCNN[fact]
        for fact in (
            'test metric classes filtered scales flip N bg_lo sampler pos_fraction lr '
            'momentum decay box_coding loss_bbox test_nms load_from'
        ).split()
    },
    **{fact: RPN[fact] for fact in RPN if fact.startswith('rpn_')},
    train=VOC0712['train'],
    network='ResNet',
    frozen_stages=1,
    B=256,
    score_thr=0.05,
    max_per_img=100,
    iterations=110000,
    steps=[80000],
    rfcn=dict(depth=50, stride=1, dilation=2, k=7, channels=1024),
)
RFCN.update(rpn_kept=(300, 300))
RFCN_101 = dict(rfcn=dict(RFCN['rfcn'], depth=101))
RFCN_OHEM = dict(OHEM, nms_iou=None)
RFCN_MS = dict(scales=[(1000, side) for side in (400, 500, 600, 700, 800)])
SMALL_MS = dict.fromkeys(
    ['scales', 'tta_scales'], [(500, side) for side in (240, 288, 344, 432, 450)]
)
RFCN_SMALL = {fact: value for fact, value in SMALL.items() if fact != 'head'}
RFCN_SMALL.update(B=256, rpn_kept=(300, 300))
SMALL_FPN = dict(  # MMDetection's recipe, B and proposals in its proportion
    {fact: value for fact, value in RFCN_SMALL.items() if fact != 'metric'},
    head=128,
    bg_lo=0,
    test_nms=0.5,
    rpn_anchors=([4], [0.5, 1.0, 2.0], [8, 16, 32, 64]),
    rpn_sampler=('RandomSampler', 256, 0.5),
    rpn_bounds=(0.7, 0.3),
    rpn_kept=(250, 250),
)


def fast_rcnn(*changes: dict, **others) -> dict:
    recipe = dict(FAST_RCNN)
    for change in (*changes, others):
        recipe.update(change)
    return recipe


RECIPES = {
    # Table 1, row by row
    'fast_rcnn_vggm_voc07': fast_rcnn(VGGM),
    'fast_rcnn_vgg16_caffe_voc07': fast_rcnn(CAFFE),
    'fast_rcnn_vggm_bg0_voc07': fast_rcnn(VGGM, NO_BOUND),
    'fast_rcnn_vgg16_caffe_bg0_voc07': fast_rcnn(CAFFE, NO_BOUND),
    'fast_rcnn_vgg16_caffe_n1_voc07': fast_rcnn(CAFFE, N=1),
    'fast_rcnn_vgg16_caffe_n1_bg0_voc07': fast_rcnn(CAFFE, NO_BOUND, N=1),
    'fast_rcnn_vggm_n1_all_voc07': fast_rcnn(VGGM, ALL, N=1, lr=0.004),
    'fast_rcnn_vggm_all_voc07': fast_rcnn(VGGM, ALL, lr=0.004),
    'fast_rcnn_vgg16_caffe_n1_all_voc07': fast_rcnn(CAFFE, ALL, N=1, lr=0.003),
    'fast_rcnn_vgg16_caffe_all_voc07': fast_rcnn(CAFFE, ALL, lr=0.003),
    'fast_rcnn_vgg16_caffe_n1_ohem_voc07': fast_rcnn(CAFFE, OHEM, N=1),
    'fast_rcnn_vggm_ohem_voc07': fast_rcnn(VGGM, OHEM),
    'fast_rcnn_vgg16_caffe_ohem_voc07': fast_rcnn(CAFFE, OHEM),
    # the released code
    'fast_rcnn_vgg16_ohem_release_voc07': fast_rcnn(RELEASE),
    'fast_rcnn_vggm_ohem_release_voc07': fast_rcnn(VGGM, RELEASE),
    # rows of VGG16 from torchvision's weights
    'fast_rcnn_vgg16_voc07': fast_rcnn(),
    'fast_rcnn_vgg16_bg0_voc07': fast_rcnn(NO_BOUND),
    'fast_rcnn_vgg16_n1_voc07': fast_rcnn(N=1),
    'fast_rcnn_vgg16_n1_bg0_voc07': fast_rcnn(NO_BOUND, N=1),
    'fast_rcnn_vgg16_n1_all_voc07': fast_rcnn(ALL, N=1, lr=0.003),
    'fast_rcnn_vgg16_all_voc07': fast_rcnn(ALL, lr=0.003),
    'fast_rcnn_vgg16_n1_ohem_voc07': fast_rcnn(OHEM, N=1),
    'fast_rcnn_vgg16_ohem_voc07': fast_rcnn(OHEM),
    # its iterations counted as steps, like the release's
    'fast_rcnn_vgg16_ohem_accumulate_voc07': fast_rcnn(OHEM, images_at_a_time=1),
    # the other data sets
    'fast_rcnn_vgg16_voc0712': fast_rcnn(VOC0712),
    'fast_rcnn_vgg16_ohem_voc0712': fast_rcnn(VOC0712, OHEM),
    'fast_rcnn_vgg16_ohem_ms_voc0712': fast_rcnn(VOC0712, OHEM, MS),
    'fast_rcnn_vgg16_voc12': fast_rcnn(VOC12),
    'fast_rcnn_vgg16_ohem_voc12': fast_rcnn(VOC12, OHEM),
    'fast_rcnn_vgg16_ohem_ms_voc12': fast_rcnn(VOC12, OHEM, MS),
    'fast_rcnn_vgg16_voc07pp12': fast_rcnn(VOC07PP12),
    'fast_rcnn_vgg16_ohem_voc07pp12': fast_rcnn(VOC07PP12, OHEM),
    'fast_rcnn_vgg16_ohem_ms_voc07pp12': fast_rcnn(VOC07PP12, OHEM, MS),
    'fast_rcnn_vgg16_ohem_coco_to_voc07pp12': fast_rcnn(
        VOC07PP12,
        OHEM,
        load_from='work_dirs/fast_rcnn_vgg16_ohem_coco_trainval/iter_240000.pth',
    ),
    'fast_rcnn_vgg16_ohem_ms_coco_to_voc07pp12': fast_rcnn(
        VOC07PP12,
        OHEM,
        MS,
        load_from='work_dirs/fast_rcnn_vgg16_ohem_ms_coco_trainval/iter_240000.pth',
    ),
    'fast_rcnn_vgg16_coco': fast_rcnn(COCO),
    'fast_rcnn_vgg16_ohem_coco': fast_rcnn(COCO, OHEM),
    'fast_rcnn_vgg16_coco_testdev': fast_rcnn(COCO, TESTDEV),
    'fast_rcnn_vgg16_ohem_coco_testdev': fast_rcnn(COCO, TESTDEV, OHEM),
    'fast_rcnn_vgg16_ohem_ms_coco_testdev': fast_rcnn(COCO, TESTDEV, OHEM, MS),
    'fast_rcnn_vgg16_ohem_coco_trainval': fast_rcnn(COCO_TRAINVAL, OHEM),
    'fast_rcnn_vgg16_ohem_ms_coco_trainval': fast_rcnn(COCO_TRAINVAL, OHEM, MS),
    # +M
    'fast_rcnn_vgg16_ms_voc07': fast_rcnn(MS),
    'fast_rcnn_vgg16_ohem_ms_voc07': fast_rcnn(OHEM, MS),
    'fast_rcnn_small_ms_bccd': {**SMALL, **SMALL_MS},
    'fast_rcnn_small_ohem_ms_bccd': {**SMALL, **SMALL_MS, **OHEM},
    # end to end, and the first half of alternating training
    'faster_rcnn_vgg16_ohem_voc07': fast_rcnn(OHEM, RPN),
    'faster_rcnn_vggm_ohem_voc07': fast_rcnn(VGGM, OHEM, RPN),
    'rpn_vgg16_voc07': {
        **{fact: value for fact, value in FAST_RCNN.items() if fact in RPN_HAS},
        **RPN,
        'N': 1,
        'iterations': 80000,
        'steps': [60000],
        'rpn_kept': (2000,),
        'metric': dict(type='DumpProposals', output_dir='work_dirs/CONFIG'),
    },
    # R-FCN
    'rfcn_r50_voc0712': RFCN,
    'rfcn_r50_ohem_voc0712': {**RFCN, **RFCN_OHEM},
    'rfcn_r50_ms_voc0712': {**RFCN, **RFCN_MS},
    'rfcn_r50_ohem_ms_voc0712': {**RFCN, **RFCN_OHEM, **RFCN_MS},
    'rfcn_r101_voc0712': {**RFCN, **RFCN_101},
    'rfcn_r101_ohem_voc0712': {**RFCN, **RFCN_101, **RFCN_OHEM},
    'rfcn_r101_ms_voc0712': {**RFCN, **RFCN_101, **RFCN_MS},
    'rfcn_r101_ohem_ms_voc0712': {**RFCN, **RFCN_101, **RFCN_OHEM, **RFCN_MS},
    # MMDetection's own detectors
    'faster_rcnn_r50_fpn_ohem_coco': {**R50, **OHEM},
    'mask_rcnn_r50_fpn_ohem_coco': {**R50, **OHEM},
    'cascade_rcnn_r50_fpn_ohem_coco': dict(
        network='ResNet',
        N=2,
        stages=[('mmdet_ohem.OHEMSampler', 512, bound) for bound in (0.5, 0.6, 0.7)],
    ),
    'retinanet_r50_fpn_ohem_coco': dict(
        network='ResNet',
        N=2,
        retina_head=('mmdet_ohem.AllLevelsRetinaHead', 'mmdet_ohem.OHEMLoss', 256),
    ),
    # two CPU cores
    'fast_rcnn_small_bccd': SMALL,
    'fast_rcnn_small_ohem_bccd': {**SMALL, **OHEM},
    'faster_rcnn_small_fpn_bccd': SMALL_FPN,
    'rfcn_small_bccd': RFCN_SMALL,
    'rfcn_small_ohem_bccd': {**RFCN_SMALL, **RFCN_OHEM},
    'fast_rcnn_small_lookalikes': dict(SMALL, train=['ImageSets/Main/train.txt']),
    'fast_rcnn_small_ohem_lookalikes': {
        **SMALL,
        **OHEM,
        'train': ['ImageSets/Main/train.txt'],
    },
}

# ------------------------------------------------- the same things, read off a config


def train_datasets(config: Config) -> list:
    dataset = config.train_dataloader.dataset
    return dataset.get('datasets', [dataset])


def train_step(config: Config, names: tuple[str, ...]):
    """The transform of these names, the same in every data set's pipeline."""
    first, *others = [
        next(step for step in dataset.pipeline if step.type in names)
        for dataset in train_datasets(config)
    ]
    assert all(step == first for step in others)
    return first


def train_scales(config: Config) -> list:
    step = train_step(config, ('Resize', 'RandomChoiceResize'))
    assert step.keep_ratio
    return step.scales if step.type == 'RandomChoiceResize' else [step.scale]


def metric(config: Config) -> dict:
    """With CONFIG for the config's name: none overwrites what another one wrote."""
    name = Path(config.filename).stem
    return {
        key: value.replace(f'work_dirs/{name}', 'work_dirs/CONFIG')
        if isinstance(value, str)
        else value
        for key, value in config.test_evaluator.items()
    }


def accumulated(config: Config) -> int:
    return config.optim_wrapper.get('accumulative_counts', 1)


def rcnn(config: Config):
    return config.model.train_cfg.rcnn


def bg_lo(config: Config) -> float:
    bounds = rcnn(config).assigner.neg_iou_thr
    # MMDetection's assigner takes no notice of a list.
    assert isinstance(bounds, (float, tuple))
    low, high = bounds if isinstance(bounds, tuple) else (0, bounds)
    assert high == rcnn(config).assigner.pos_iou_thr == 0.5
    return low


def milestones(config: Config) -> list[float]:
    schedule = config.param_scheduler[-1]
    assert schedule.type == 'MultiStepLR' and not schedule.by_epoch
    assert schedule.gamma == 0.1
    return [step / accumulated(config) for step in schedule.milestones]


def rois_per_step(config: Config) -> int:
    return rcnn(config).sampler.num * images_per_step(config)


def images_per_step(config: Config) -> int:
    return config.train_dataloader.batch_size * accumulated(config)


def weights(config: Config) -> str:
    init_cfg = config.model.backbone.init_cfg
    assert init_cfg == config.model.roi_head.bbox_head.init_cfg
    # Each kind of weights wants the input that it was trained on.
    is_caffe = init_cfg.type == 'mmdet_ohem.ConvertedWeights'
    preprocessor = config.model.data_preprocessor
    assert preprocessor.bgr_to_rgb != is_caffe
    assert preprocessor.mean == (
        [102.9801, 115.9465, 122.7717] if is_caffe else [123.675, 116.28, 103.53]
    )
    assert preprocessor.std == ([1] * 3 if is_caffe else [58.395, 57.12, 57.375])
    return init_cfg.type


def bias_rule(config: Config) -> dict:
    """That of the four fully connected layers; other biases: twice the rate."""
    paramwise = config.optim_wrapper.paramwise_cfg
    assert paramwise.bias_lr_mult == 2 and 'bias_decay_mult' not in paramwise
    layers = [f'bbox_head.{name}.bias' for name in ('fc6', 'fc7', 'fc_cls', 'fc_reg')]
    assert sorted(paramwise.custom_keys) == sorted(layers)
    rule, *others = paramwise.custom_keys.values()
    assert all(other == rule for other in others)
    return rule


def box_coding(config: Config) -> tuple:
    coder = config.model.roi_head.bbox_head.bbox_coder
    return tuple(coder.target_means), tuple(coder.target_stds)


def loss_bbox(config: Config) -> tuple:
    loss = config.model.roi_head.bbox_head.loss_bbox
    return loss.type, loss.beta


def rpn_kept(config: Config) -> tuple:
    """Proposals of an image, for training on if there is a RoI head, and at test."""
    kept = [config.model.test_cfg.rpn]
    if 'roi_head' in config.model:
        kept.insert(0, config.model.train_cfg.rpn_proposal)
    assert all(rpn.nms.iou_threshold == 0.7 for rpn in kept)
    return tuple(rpn.max_per_img for rpn in kept)


def rfcn(config: Config) -> dict:
    roi_head, backbone = config.model.roi_head, config.model.backbone
    conv5 = roi_head.conv5
    # The same network from end to end, with the input that its weights want.
    assert conv5.depth == backbone.depth and conv5.style == backbone.style == 'caffe'
    assert conv5.init_cfg == backbone.init_cfg
    assert f'resnet{conv5.depth}_caffe' in conv5.init_cfg.checkpoint
    assert not config.model.data_preprocessor.bgr_to_rgb
    assert config.model.data_preprocessor.std == [1.0] * 3
    return dict(
        depth=conv5.depth,
        stride=conv5.stride,
        dilation=conv5.dilation,
        k=roi_head.bbox_roi_extractor.output_size,
        channels=roi_head.feat_channels,
    )


def is_filtered(config: Config) -> bool:
    """By size or emptiness, repeated, or grouped by shape: the release does neither."""
    return (
        any('filter_cfg' in dataset for dataset in train_datasets(config))
        or config.train_dataloader.dataset.type == 'RepeatDataset'
        or 'batch_sampler' in config.train_dataloader
    )


FACTS = dict(
    network=lambda c: c.model.backbone.type,
    frozen_stages=lambda c: c.model.backbone.frozen_stages,
    head=lambda c: c.model.roi_head.bbox_head.fc_out_channels,
    pooled=lambda c: c.model.roi_head.bbox_roi_extractor.output_size,
    weights=weights,
    bbox_head=lambda c: c.model.roi_head.bbox_head.type,
    train=lambda c: [dataset.ann_file for dataset in train_datasets(c)],
    test=lambda c: c.test_dataloader.dataset.ann_file,
    metric=metric,
    classes=lambda c: c.model.roi_head.bbox_head.num_classes,
    filtered=is_filtered,
    scales=train_scales,
    tta_scales=lambda c: [step.scale for step in c.tta_pipeline[1].transforms[0]],
    flip=lambda c: train_step(c, ('RandomFlip',)).prob,
    N=images_per_step,
    images_at_a_time=lambda c: c.train_dataloader.batch_size,
    B=rois_per_step,
    bg_lo=bg_lo,
    crowd_iof=lambda c: rcnn(c).assigner.ignore_iof_thr,
    sampler=lambda c: rcnn(c).sampler.type,
    pos_fraction=lambda c: rcnn(c).sampler.get('pos_fraction'),
    nms_per_label=lambda c: rcnn(c).sampler.get('nms_per_label', False),
    readonly_dropout=lambda c: rcnn(c).sampler.get('readonly_dropout', False),
    lr=lambda c: c.optim_wrapper.optimizer.lr,
    momentum=lambda c: c.optim_wrapper.optimizer.momentum,
    decay=lambda c: c.optim_wrapper.optimizer.weight_decay,
    biases=bias_rule,
    iterations=lambda c: c.train_cfg.max_iters / accumulated(c),
    steps=milestones,
    box_coding=box_coding,
    loss_bbox=loss_bbox,
    test_nms=lambda c: c.model.test_cfg.rcnn.nms.iou_threshold,
    score_thr=lambda c: c.model.test_cfg.rcnn.score_thr,
    max_per_img=lambda c: c.model.test_cfg.rcnn.max_per_img,
    tta_max_per_img=lambda c: c.tta_model.get('tta_cfg', {}).get('max_per_img'),
    computes_statistics=lambda c: any(
        hook.type == 'mmdet_ohem.BoxTargetStatisticsHook'
        for hook in c.default_hooks.values()
    ),
    rpn_anchors=lambda c: tuple(
        c.model.rpn_head.anchor_generator[key]
        for key in ('scales', 'ratios', 'strides')
    ),
    rpn_sampler=lambda c: tuple(
        c.model.train_cfg.rpn.sampler[key] for key in ('type', 'num', 'pos_fraction')
    ),
    rpn_bounds=lambda c: tuple(
        c.model.train_cfg.rpn.assigner[key] for key in ('pos_iou_thr', 'neg_iou_thr')
    ),
    rpn_loss_bbox=lambda c: (
        c.model.rpn_head.loss_bbox.type,
        c.model.rpn_head.loss_bbox.beta,
    ),
    rpn_kept=rpn_kept,
    rfcn=rfcn,
    nms_iou=lambda c: rcnn(c).sampler.nms_iou,
    stages=lambda c: [
        (stage.sampler.type, stage.sampler.num, stage.assigner.neg_iou_thr)
        for stage in rcnn(c)
    ],
    retina_head=lambda c: (
        c.model.bbox_head.type,
        c.model.bbox_head.loss_cls.type,
        c.model.bbox_head.loss_cls.num,
    ),
    load_from=lambda c: c.load_from,
)


def load(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / f'{name}.py')


def test_every_config_has_a_recipe():
    assert set(CONFIGS) == set(RECIPES)


@pytest.mark.parametrize('name', RECIPES)
def test_the_config_follows_the_recipe(name):
    config = load(name)
    found = {fact: FACTS[fact](config) for fact in RECIPES[name]}
    assert found == RECIPES[name]


@pytest.mark.parametrize('name', [name for name in CONFIGS if '_ohem_' in name])
def test_ohem_has_no_lower_bound_for_background(name):
    rcnns = load(name).model.get('train_cfg', {}).get('rcnn') or []
    for stage in rcnns if isinstance(rcnns, list) else [rcnns]:
        assert isinstance(stage.assigner.neg_iou_thr, float)


@pytest.mark.parametrize(
    'name', [name for name, recipe in RECIPES.items() if 'biases' in recipe]
)
def test_learning_rate_and_decay_of_every_parameter(name):
    """Biases: twice the rate; no decay for those of fc6, fc7, cls and bbox."""
    config = load(name)
    init_default_scope('mmdet')
    with torch.device('meta'):  # names and shapes, no numbers
        detector = MODELS.build(config.model)
    optimizer = build_optim_wrapper(detector, config.optim_wrapper).optimizer
    settings = {
        id(group['params'][0]): (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
    }
    lr = RECIPES[name]['lr']
    fully_connected = ('fc6', 'fc7', 'fc_cls', 'fc_reg')
    seen = set()
    for parameter_name, parameter in detector.named_parameters():
        if not parameter.requires_grad:  # conv1_1 to conv2_2, or conv1
            frozen = r'backbone\.(conv1|features\.[0257])\.'
            assert re.match(frozen, parameter_name)
            continue
        layer, kind = parameter_name.split('.')[-2:]
        expected = (2 * lr if kind == 'bias' else lr, 0.0005)
        if kind == 'bias' and layer in fully_connected:
            expected = (2 * lr, 0)
            seen.add(layer)
        assert settings[id(parameter)] == pytest.approx(expected), parameter_name
    assert seen == set(fully_connected)


def test_the_experiments_page_and_the_configs_name_each_other():
    page = (ROOT / 'docs' / 'experiments.md').read_text()
    named = set(re.findall(r'`((?:fast_rcnn|rfcn)_\w+)`', page))
    assert named <= set(CONFIGS)
    ours = ('fast_rcnn_vgg', 'rfcn_')
    assert {name for name in CONFIGS if name.startswith(ours)} <= named


def test_a_config_starts_from_caffes_weights_as_the_experiments_page_says(tmp_path):
    page = (ROOT / 'docs' / 'experiments.md').read_text()
    (snippet,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    (tmp_path / 'mine.py').write_text(
        re.sub(r"'([\w/]+\.py)'", rf"'{ROOT}/configs/\1'", snippet)
    )
    config = Config.fromfile(tmp_path / 'mine.py')
    assert weights(config) == 'mmdet_ohem.ConvertedWeights'
    assert config.test_evaluator.type == 'mmdet_ohem.VOCServerFiles'


# --------------------------------------------------------------- each of them, run once


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """A folder with data/, and the COCO models that two configs go on from."""
    root = tmp_path_factory.mktemp('experiments')
    small_data.write_everything(
        root, VOCDataset.METAINFO['classes'], CocoDataset.METAINFO['classes']
    )
    init_default_scope('mmdet')
    coco_model = MODELS.build(shrunk('fast_rcnn_vgg16_ohem_coco_trainval').model)
    for recipe in RECIPES.values():
        if recipe.get('load_from'):
            checkpoint = root / recipe['load_from']
            checkpoint.parent.mkdir(parents=True)
            torch.save(dict(state_dict=coco_model.state_dict()), checkpoint)
    return root


@pytest.fixture
def in_data(data, monkeypatch) -> Path:
    monkeypatch.chdir(data)
    return data


def dicts(config):
    if isinstance(config, dict):
        yield config
        config = config.values()
    if not isinstance(config, str):
        for value in config if hasattr(config, '__iter__') else ():
            yield from dicts(value)


def shrunk(name: str, steps: int = 1) -> Config:
    """A config with small images and layers, random weights and `steps` steps."""
    config = load(name)
    for part in dicts(config._cfg_dict):
        if part.get('type') == 'Resize':
            part.scale = (64, 48)
        if part.get('type') == 'RandomChoiceResize':
            part.scales = [(64, 40), (64, 48)]
        if str(part.get('type')).endswith('VGGBBoxHead'):
            part.fc_out_channels = (24, 16)
        if 'init_cfg' in part and part is not config._cfg_dict:
            part.init_cfg = None
        if 'mask_thr_binary' in part:  # each mask is pasted into the image
            part.max_per_img = 10
        if 'nms_pre' in part:  # of an RPN
            part.update(nms_pre=200, max_per_img=100)
        if 'allowed_border' in part:  # no anchor fits into so small an image
            part.allowed_border = -1
        if 'score_thr' in part:  # random scores are all below 0.05
            part.score_thr = 0.001
        if 'num_workers' in part:
            part.update(num_workers=0, persistent_workers=False)
    if name.startswith('rfcn_'):
        shrink_rfcn(config.model)
    if '_r50_fpn_' in name:
        config.model.backbone.depth = 18
        config.model.neck.in_channels = [64, 128, 256, 512]
    config.default_hooks.update(checkpoint=None, logger=dict(type='LoggerHook'))
    config.default_hooks.logger.interval = 1
    if 'max_epochs' in config.train_cfg:
        config.train_cfg.max_epochs = 1
    else:
        iterations = steps * accumulated(config)
        config.train_cfg.update(max_iters=iterations, val_interval=iterations)
    return config


def shrink_rfcn(model: Config) -> None:
    model.roi_head.feat_channels = 16
    model.roi_head.bbox_roi_extractor.output_size = 3  # the maps have 3 x 4 cells
    if 'conv5' in model.roi_head:  # the width of conv5 is fixed, by the depth
        model.backbone.depth = model.roi_head.conv5.depth = 18
        model.rpn_head.in_channels, model.roi_head.in_channels = 256, 512


# Numbers aside, a config is made of three parts; these facts say which code they reach.
# (Here no network starts from weights, and all of R-FCN's are ResNet-18.)
PARTS = dict(
    model='network bbox_head sampler nms_per_label computes_statistics rpn_anchors '
    'stages retina_head'.split(),
    training='train scales images_at_a_time load_from'.split(),
    testing='test metric tta_scales'.split(),
)


def parts_of(recipe: dict) -> set[str]:
    return {
        f'{part}: {[recipe.get(fact) for fact in facts]}'
        for part, facts in PARTS.items()
    }


def configs_with_all_parts() -> list[str]:
    """The first config with each part, in the order of RECIPES; and MMDetection's own,
    whose recipes do not say all."""
    chosen, seen = [], set()
    for name, recipe in RECIPES.items():
        if not parts_of(recipe) <= seen or 'metric' not in recipe:
            chosen.append(name)
            seen |= parts_of(recipe)
    return chosen


run_count = itertools.count()


def build_runner(config: Config) -> Runner:
    """As tools/train.py does, in a work dir of its own, without validation."""
    check_data(config, ('train', 'val', 'test'))
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    # MMEngine tells the runs of one process apart by name.
    config.experiment_name = config.visualizer.name = f'run{next(run_count)}'
    config.work_dir = os.path.abspath(config.experiment_name)
    return Runner.from_cfg(config)


def scalars(runner: Runner) -> list[dict]:
    (log,) = Path(runner.work_dir).glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(set(CONFIGS) - set(configs_with_all_parts())))
def test_the_network_and_the_data_sets_are_built(name, in_data):
    """Of those that are not trained below."""
    config = shrunk(name)
    check_data(config, ('train', 'val', 'test'))
    with torch.device('meta'):  # without numbers
        MODELS.build(config.model)
    for dataset in (config.train_dataloader.dataset, config.test_dataloader.dataset):
        sample = DATASETS.build(dataset)[0]
        assert sample['inputs'].shape[0] == 3


@pytest.mark.slow
@pytest.mark.parametrize('name', configs_with_all_parts())
def test_one_step_and_one_evaluation(name, in_data):
    runner = build_runner(shrunk(name))
    runner.train()
    losses = [line['loss'] for line in scalars(runner) if 'loss' in line]
    assert losses and all(0 < loss < 1000 for loss in losses)
    (dump,) = Path(runner.work_dir).glob('*.py')
    # A tuple must stay one, and for `==` it is a list.
    dumped = Config.fromfile(dump).to_dict()['model']
    assert pformat(dumped) == pformat(runner.cfg.to_dict()['model'])

    metrics = runner.test()
    expected = load(name).test_evaluator
    if expected.get('type') == 'mmdet_ohem.VOCServerFiles':
        assert Path(runner.work_dir, 'results.tar.gz').exists()
    elif expected.get('type') == 'DumpProposals':
        assert Path(expected['output_dir'], 'proposals.pkl').exists()
    elif expected.get('format_only'):
        assert Path(runner.work_dir, 'test-dev.bbox.json').exists()
    else:
        assert metrics and all(-1 <= value <= 1 for value in metrics.values())


def test_fine_tuning_keeps_all_but_the_class_layers(in_data):
    config = shrunk('fast_rcnn_vgg16_ohem_coco_to_voc07pp12')
    runner = build_runner(config)
    runner.load_or_resume()
    before = torch.load(in_data / config.load_from, weights_only=True)['state_dict']
    kept = {
        name: name in before and torch.equal(weight, before[name])
        for name, weight in runner.model.state_dict().items()
    }
    new = {name for name, is_kept in kept.items() if not is_kept}
    layers = [f'roi_head.bbox_head.{layer}' for layer in ('fc_cls', 'fc_reg')]
    assert new == {f'{layer}.{kind}' for layer in layers for kind in ('weight', 'bias')}


def test_iterations_with_accumulation_are_counted_as_mmengine_counts(in_data):
    """Two iterations of one image each are one step, one iteration of Caffe's."""
    config = shrunk('fast_rcnn_vgg16_ohem_accumulate_voc07', steps=3)
    assert config.train_cfg.max_iters == 6
    config.param_scheduler[0].milestones = [4]  # after two steps
    runner = build_runner(config)
    runner.optim_wrapper = runner.build_optim_wrapper(config.optim_wrapper)
    optimizer, rates = runner.optim_wrapper.optimizer, []
    step = optimizer.step

    def counted(*args, **kwargs):
        rates.append(optimizer.param_groups[0]['lr'])
        return step(*args, **kwargs)

    optimizer.step = counted
    runner.train()
    assert rates == pytest.approx([0.001, 0.001, 0.0001])


def test_the_same_seed_gives_the_same_losses_and_the_log_says_it(in_data):
    runs = []
    for seed in (7, 7, 8):
        config = shrunk('fast_rcnn_vgg16_ohem_voc07', steps=3)
        config.randomness.seed = seed
        runner = build_runner(config)
        runner.train()
        runs.append([line['loss'] for line in scalars(runner) if 'loss' in line])
        (log,) = Path(runner.work_dir).glob('*/*.log')
        assert re.search(rf'seed: {seed}\b', log.read_text())
    assert runs[0] == runs[1] != runs[2] and len(runs[0]) == 3


def test_the_releases_statistics_are_saved_for_test_and_resume(in_data, monkeypatch):
    def short(iterations: int) -> Config:
        config = shrunk('fast_rcnn_vggm_ohem_release_voc07', steps=iterations // 2)
        config.default_hooks.checkpoint = dict(
            type='CheckpointHook', by_epoch=False, interval=2
        )
        return config

    runner = build_runner(short(2))
    runner.train()
    checkpoint = os.path.join(runner.work_dir, 'iter_2.pth')
    saved = torch.load(checkpoint, weights_only=True)['state_dict']
    name = 'roi_head.bbox_head.target_stds'
    assert saved[name].shape == (20, 4) and (saved[name] != 1).any()

    def not_again(*args):
        raise AssertionError('a resumed training has its statistics')

    monkeypatch.setattr(box_target_statistics, 'box_target_statistics', not_again)
    config = short(4)
    config.update(resume=True, load_from=checkpoint)
    resumed = build_runner(config)
    resumed.train()
    assert resumed.iter == 4
    tested = build_runner(Config({**short(2), 'load_from': checkpoint}))
    tested.test()
    for run in (resumed, tested):
        assert torch.equal(run.model.state_dict()[name], saved[name])
