"""What a GPU cannot do is said in one sentence; the GPU is pretended."""

import sys

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from support.tools import ROOT

import mmdet_ohem
from mmdet_ohem.runs import check_gpu, missing_operators_as_sentences

VGG16 = ROOT / 'configs' / 'fast_rcnn_vgg16_ohem_voc07.py'
TRAIN = ('train', 'val')


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    pretend_mmcv(monkeypatch, '13.0')


def pretend_mmcv(monkeypatch, cuda: str) -> None:
    # The function of this name hides its module from a path of attributes.
    module = sys.modules['mmdet_ohem.runs.check_gpu']
    monkeypatch.setattr(module, 'get_compiling_cuda_version', lambda: cuda)


def r50() -> Config:
    return get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')


def with_amp(config: Config, **settings) -> Config:
    config.optim_wrapper.update(type='AmpOptimWrapper', **settings)
    return config


def test_what_a_gpu_can_do_passes():
    for config in (r50(), Config.fromfile(VGG16)):
        check_gpu(config, TRAIN)
        check_gpu(config, ('test',))
        check_gpu(with_amp(config, loss_scale='dynamic'), TRAIN)
        check_gpu(with_amp(config, dtype='float16'), TRAIN)
    check_gpu(with_amp(Config.fromfile(VGG16), dtype='bfloat16'), TRAIN)


def test_bfloat16_wants_a_pooling_that_has_it():
    with pytest.raises(ValueError, match="RoIAlign has no bfloat16.*dtype='float16'"):
        check_gpu(with_amp(r50(), dtype='bfloat16'), TRAIN)


def test_deterministic_training_is_refused():
    config = Config.fromfile(VGG16)
    config.randomness = dict(seed=0, deterministic=True)
    with pytest.raises(ValueError, match='randomness.deterministic=True.*rounding'):
        check_gpu(config, TRAIN)
    check_gpu(config, ('test',))


def test_an_mmcv_without_cuda_trains_vgg(monkeypatch):
    pretend_mmcv(monkeypatch, 'not available')
    mmdet_ohem._check_mmcv()
    config = Config.fromfile(VGG16)
    with pytest.raises(ValueError, match='NMS of the validation.*val_cfg=None'):
        check_gpu(config, TRAIN)
    with pytest.raises(ValueError, match='test on the CPU, with CUDA_VISIBLE_DEVICES='):
        check_gpu(config, ('test',))
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    check_gpu(config, TRAIN)


def test_an_operator_that_is_missing_is_named():
    """In mmcv's own words, from an operator asked for a device that it has none for."""
    align = MODELS.build(
        dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=2),
            out_channels=2,
            featmap_strides=[8],
        )
    )
    feats, rois = torch.rand(1, 2, 8, 8, device='meta'), torch.rand(3, 5, device='meta')
    with pytest.raises(SystemExit, match='this config needs roi_align: install'):
        with missing_operators_as_sentences():
            align((feats,), rois)
    with pytest.raises(RuntimeError, match='^other'):
        with missing_operators_as_sentences():
            raise RuntimeError('other')


def test_without_a_gpu_nothing_is_checked(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    check_gpu(with_amp(r50(), dtype='bfloat16'), TRAIN)
