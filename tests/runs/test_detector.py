"""A config and a checkpoint that fit each other, or a sentence."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdet_ohem.runs.detector import load_detector

CONFIG = 'configs/fast_rcnn_small_ohem_lookalikes.py'


@pytest.fixture
def saved(tmp_path):
    """A config, and a checkpoint of it with random weights."""
    config = Config.fromfile(CONFIG)
    # Neither the data nor the proposals are there.
    config.test_dataloader.dataset.data_root = 'nowhere'
    config.test_dataloader.dataset.pipeline[2].store = 'nowhere'
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


@pytest.mark.parametrize(
    'content',
    [b'', b'no checkpoint', b'PK\x03\x04 half a file', b'\x80\x04\x95(', b'(0'],
)
def test_what_is_no_checkpoint_is_named(content, saved):
    config, path, _ = saved
    path.write_bytes(content)
    with pytest.raises(ValueError, match='weights.pth cannot be read as a checkpoint'):
        load_detector(config, path)


class Evil:
    """Pickled, it is a command that is run when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_downloaded_file_is_run(saved, tmp_path, monkeypatch):
    config, path, checkpoint = saved
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    torch.save(
        dict(checkpoint, evil=Evil(tmp_path / 'was_here')), tmp_path / 'evil.pth'
    )
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    try:
        load_detector(config, f'{url}/weights.pth')
        for name in ('evil.pth', 'nothing.pth'):
            with pytest.raises(ValueError, match=f'{name} cannot be read as a check'):
                load_detector(config, f'{url}/{name}')
    finally:
        server.shutdown()
    assert not (tmp_path / 'was_here').exists()


def test_a_device_that_is_not_there_is_named(saved):
    with pytest.raises(ValueError, match='The device cuda:99 is not there'):
        load_detector(*saved[:2], device='cuda:99')


def test_a_list_is_no_checkpoint_either(saved):
    config, path, _ = saved
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match='weights.pth'):
        load_detector(config, path)
