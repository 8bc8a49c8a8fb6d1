"""A config and a checkpoint that fit each other, or a sentence."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdet_ohem.load_detector import load_detector

CONFIG = 'configs/fast_rcnn_small_ohem_lookalikes.py'


@pytest.fixture
def saved(tmp_path):
    """A config, and a checkpoint of it with random weights."""
    config = Config.fromfile(CONFIG)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(config.model)
    checkpoint = dict(state_dict=detector.state_dict(), meta={})
    torch.save(checkpoint, tmp_path / 'weights.pth')
    return config, tmp_path / 'weights.pth', checkpoint


def test_all_weights_are_loaded(saved):
    config, path, checkpoint = saved
    detector = load_detector(config, path)
    assert not detector.training
    assert detector.dataset_meta['classes'] == ('washer', 'nut', 'gear')
    for name, values in detector.state_dict().items():
        assert torch.equal(values, checkpoint['state_dict'][name]), name


def test_other_layers_are_named(saved):
    config, path, _ = saved
    config.model.roi_head.bbox_head.fc_out_channels = 32
    with pytest.raises(ValueError, match='weights.pth does not fit the config'):
        load_detector(config, path)


def test_other_classes_are_named_although_the_layers_fit(saved):
    config, path, checkpoint = saved
    checkpoint['meta'] = dict(dataset_meta=dict(classes=('RBC', 'WBC', 'Platelets')))
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r'other classes \(RBC, WBC, Platelets\) than'):
        load_detector(config, path)


@pytest.mark.parametrize('content', [b'', b'no checkpoint', b'PK\x03\x04 half a file'])
def test_what_is_no_checkpoint_is_named(content, saved):
    config, path, _ = saved
    path.write_bytes(content)
    with pytest.raises(ValueError, match='weights.pth cannot be read as a checkpoint'):
        load_detector(config, path)


def test_a_list_is_no_checkpoint_either(saved):
    config, path, _ = saved
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match='weights.pth'):
        load_detector(config, path)
