"""Every config against the recipe of the paper and the authors' release."""

import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

CONFIGS = sorted(path.name for path in (ROOT / 'configs').glob('*.py'))
VOC07 = [name for name in CONFIGS if name.endswith('_voc07.py')]


def load(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / name)


def test_the_configs_are_there():
    assert set(CONFIGS) == {
        f'fast_rcnn_{net}_{sampler}{data}.py'
        for net, datasets in (
            ('vgg16', ['voc07']),
            ('vgg16_caffe', ['voc07']),
            ('vggm', ['voc07']),
            ('small', ['bccd', 'lookalikes']),
        )
        for sampler in ('', 'ohem_')
        for data in datasets
    }


@pytest.mark.parametrize('name', CONFIGS)
def test_sampler_and_assigner(name):
    rcnn = load(name).model.train_cfg.rcnn
    assert rcnn.assigner.pos_iou_thr == 0.5
    assert rcnn.sampler.num == 64  # B = 128, N = 2
    if '_ohem_' in name:
        assert rcnn.sampler == dict(type='mmdet_ohem.OHEMSampler', num=64)
        assert rcnn.assigner.neg_iou_thr == 0.5, 'OHEM has no lower bound'
    else:
        assert rcnn.sampler.type == 'RandomSampler'
        assert rcnn.sampler.pos_fraction == 0.25
        assert rcnn.assigner.neg_iou_thr == (0.1, 0.5)
        assert isinstance(rcnn.assigner.neg_iou_thr, tuple), 'a list is ignored'


@pytest.mark.parametrize('name', VOC07)
def test_the_recipe_for_voc07(name):
    config = load(name)
    assert config.train_cfg.max_iters == 40000
    (schedule,) = config.param_scheduler
    assert schedule.milestones == [30000] and schedule.gamma == 0.1
    assert not schedule.by_epoch
    optimizer = config.optim_wrapper.optimizer
    assert optimizer.type == 'SGD' and optimizer.lr == 0.001
    assert optimizer.momentum == 0.9 and optimizer.weight_decay == 0.0005
    assert config.auto_scale_lr.base_batch_size == 2
    assert config.train_dataloader.batch_size == 2
    assert 'batch_sampler' not in config.train_dataloader  # no grouping by shape

    train, test = config.train_dataloader.dataset, config.test_dataloader.dataset
    assert train.type == test.type == 'VOCDataset'  # not repeated
    assert 'filter_cfg' not in train
    assert train.ann_file == 'VOC2007/ImageSets/Main/trainval.txt'
    assert test.ann_file == 'VOC2007/ImageSets/Main/test.txt'
    resize = next(step for step in train.pipeline if step.type == 'Resize')
    assert resize.scale == (1000, 600) and resize.keep_ratio
    flip = next(step for step in train.pipeline if step.type == 'RandomFlip')
    assert flip.prob == 0.5
    assert config.test_evaluator == dict(
        type='VOCMetric', metric='mAP', eval_mode='11points'
    )
    assert config.model.test_cfg.rcnn.score_thr == 0.05
    assert config.model.test_cfg.rcnn.nms.iou_threshold == 0.3


@pytest.mark.parametrize('name', VOC07)
def test_networks_of_voc07(name):
    model = load(name).model
    bbox_head, extractor = model.roi_head.bbox_head, model.roi_head.bbox_roi_extractor
    assert bbox_head.num_classes == 20 and bbox_head.dropout == 0.5
    assert bbox_head.bbox_coder.target_stds == [0.1, 0.1, 0.2, 0.2]
    assert extractor.featmap_strides == [16]
    caffe = dict(mean=[102.9801, 115.9465, 122.7717], std=[1, 1, 1], bgr_to_rgb=False)
    if 'vggm' in name:
        assert model.backbone.type == 'mmdet_ohem.VGGCNNM1024'
        assert bbox_head.fc_out_channels == (4096, 1024)
        assert extractor.output_size == 6
    else:
        assert model.backbone.type == 'mmdet_ohem.VGG16'
        assert bbox_head.fc_out_channels == (4096, 4096)
        assert extractor.output_size == 7
    if 'vggm' in name or 'caffe' in name:
        weights = 'vgg_cnn_m_1024' if 'vggm' in name else 'vgg16_caffe'
        assert model.backbone.init_cfg == dict(
            type='mmdet_ohem.ConvertedWeights', checkpoint=f'checkpoints/{weights}.pth'
        )
        assert caffe.items() <= dict(model.data_preprocessor).items()
    else:
        assert model.backbone.init_cfg.type == 'mmdet_ohem.TorchvisionVGG16'
        assert model.data_preprocessor.bgr_to_rgb
    assert model.backbone.init_cfg == bbox_head.init_cfg


@pytest.mark.parametrize('name', VOC07)
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
    fully_connected = ('fc6', 'fc7', 'fc_cls', 'fc_reg')
    seen = set()
    for parameter_name, parameter in detector.named_parameters():
        if not parameter.requires_grad:  # conv1_1 to conv2_2, or conv1
            frozen = r'backbone\.(conv1|features\.[0257])\.'
            assert re.match(frozen, parameter_name)
            continue
        layer, kind = parameter_name.split('.')[-2:]
        expected = (0.002 if kind == 'bias' else 0.001, 0.0005)
        if kind == 'bias' and layer in fully_connected:
            expected = (0.002, 0)
            seen.add(layer)
        assert settings[id(parameter)] == pytest.approx(expected), parameter_name
    assert seen == set(fully_connected)


@pytest.mark.parametrize('name', CONFIGS)
def test_the_dumped_config_reads_back(name, tmp_path: Path):
    """The Runner dumps every config; a tuple must stay one."""
    config = load(name)
    config.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    assert dumped.model.train_cfg == config.model.train_cfg
    assert type(dumped.model.train_cfg.rcnn.assigner.neg_iou_thr) is type(
        config.model.train_cfg.rcnn.assigner.neg_iou_thr
    )


def test_the_experiments_page_names_configs_that_exist():
    page = (ROOT / 'docs' / 'experiments.md').read_text()
    names = set(re.findall(r'`(fast_rcnn_\w+_voc07)`', page))
    assert {f'{name}.py' for name in names} == set(VOC07)
