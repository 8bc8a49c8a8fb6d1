"""torchvision's VGG16 file, in files of the same keys that the tests write."""

import urllib.error

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from support.vgg_weights import vgg16_weights

from mmdet_ohem.models.pretrained import TORCHVISION_VGG16, TorchvisionVGG16
from mmdet_ohem.models.vgg import VGG16


def build_backbone(checkpoint):
    init_cfg = dict(type='mmdet_ohem.TorchvisionVGG16', checkpoint=str(checkpoint))
    return MODELS.build(dict(type='mmdet_ohem.VGG16', init_cfg=init_cfg))


def build_head(checkpoint):
    head = dict(type='mmdet_ohem.VGGBBoxHead', in_channels=2, roi_feat_size=2)
    head.update(fc_out_channels=(6, 6), num_classes=20)
    init_cfg = dict(type='mmdet_ohem.TorchvisionVGG16', checkpoint=str(checkpoint))
    return MODELS.build(dict(head, init_cfg=init_cfg))


# torchvision's own file is of 2017 and has the older format.
@pytest.mark.parametrize('zip_format', [True, False])
def test_backbone_and_head_take_their_layers(tmp_path, zip_format):
    weights = vgg16_weights()
    file = tmp_path / 'vgg16.pth'
    torch.save(weights, file, _use_new_zipfile_serialization=zip_format)

    backbone = build_backbone(file)
    backbone.init_weights()
    names = dict(backbone.named_parameters())
    assert set(names) == {name for name in weights if name.startswith('features')}
    for name, parameter in names.items():
        assert torch.equal(parameter, weights[name])
    assert not backbone.features[0].weight.requires_grad  # still frozen

    torch.manual_seed(0)
    head = build_head(file)
    head.init_weights()
    assert torch.equal(head.fc6.weight, weights['classifier.0.weight'])
    assert torch.equal(head.fc6.bias, weights['classifier.0.bias'])
    assert torch.equal(head.fc7.weight, weights['classifier.3.weight'])
    assert torch.equal(head.fc7.bias, weights['classifier.3.bias'])
    # the new layers keep BBoxHead's Gaussians
    assert head.fc_cls.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert head.fc_reg.weight.std().item() == pytest.approx(0.001, rel=0.3)


def test_a_whole_detector_takes_them(tmp_path):
    weights = vgg16_weights()
    file = tmp_path / 'vgg16.pth'
    torch.save(weights, file)
    init_cfg = dict(type='mmdet_ohem.TorchvisionVGG16', checkpoint=str(file))
    detector = MODELS.build(
        dict(
            type='mmdet.FastRCNN',
            backbone=dict(type='mmdet_ohem.VGG16', init_cfg=init_cfg),
            roi_head=dict(
                type='mmdet.StandardRoIHead',
                bbox_roi_extractor=dict(
                    type='mmdet_ohem.RoIPoolExtractor', output_size=2
                ),
                bbox_head=dict(
                    type='mmdet_ohem.VGGBBoxHead',
                    in_channels=2,
                    roi_feat_size=2,
                    fc_out_channels=(6, 6),
                    num_classes=20,
                    init_cfg=init_cfg,
                ),
            ),
            train_cfg=None,
            test_cfg=ConfigDict(rcnn=None),
        )
    )
    detector.init_weights()
    conv5_3 = detector.backbone.features[28]
    assert torch.equal(conv5_3.weight, weights['features.28.weight'])
    fc7 = detector.roi_head.bbox_head.fc7
    assert torch.equal(fc7.weight, weights['classifier.3.weight'])


@pytest.mark.slow
def test_full_size_head(tmp_path):
    weights = vgg16_weights(fc6_inputs=512 * 7 * 7, fc_width=4096)
    file = tmp_path / 'vgg16.pth'
    torch.save(weights, file)
    head = MODELS.build(
        dict(
            type='mmdet_ohem.VGGBBoxHead',
            init_cfg=dict(type='mmdet_ohem.TorchvisionVGG16', checkpoint=str(file)),
        )
    )
    head.init_weights()
    assert torch.equal(head.fc6.weight, weights['classifier.0.weight'])


def test_missing_file_says_what_to_fetch_and_where(tmp_path):
    file = tmp_path / 'vgg16.pth'
    with pytest.raises(FileNotFoundError) as error:
        build_backbone(file).init_weights()
    assert str(file) in str(error.value) and TORCHVISION_VGG16 in str(error.value)
    assert 'init_cfg=None' in str(error.value)


def test_no_network_says_where_to_put_the_file(tmp_path, monkeypatch):
    def no_network(url, dst, *args, **kwargs):
        raise urllib.error.URLError('no route to host')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', no_network)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    place = tmp_path / 'hub' / 'checkpoints' / 'vgg16-397923af.pth'
    with pytest.raises(OSError) as error:
        build_backbone(TORCHVISION_VGG16).init_weights()
    assert TORCHVISION_VGG16 in str(error.value) and str(place) in str(error.value)

    weights = vgg16_weights()
    torch.save(weights, place)  # as told
    backbone = build_backbone(TORCHVISION_VGG16)
    backbone.init_weights()
    assert torch.equal(backbone.features[0].bias, weights['features.0.bias'])


def test_an_url_is_downloaded_once_for_both(tmp_path, monkeypatch):
    weights = vgg16_weights()
    downloads = []

    def download(url, dst, *args, **kwargs):
        downloads.append(url)
        torch.save(weights, dst)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    backbone, head = build_backbone(TORCHVISION_VGG16), build_head(TORCHVISION_VGG16)
    backbone.init_weights(), head.init_weights()
    assert downloads == [TORCHVISION_VGG16]
    assert torch.equal(backbone.features[28].bias, weights['features.28.bias'])
    assert torch.equal(head.fc7.bias, weights['classifier.3.bias'])


@pytest.mark.parametrize('url', ['torchvision://vgg16', 'http://host/vgg16.pth'])
def test_other_schemes_are_refused(url):
    with pytest.raises(ValueError, match='neither a path nor an https URL'):
        build_backbone(url).init_weights()


def code_in_a_pickle(file):
    torch.save(dict(model=torch.nn.Linear(1, 1)), file)


def half_a_file(file):
    torch.save(vgg16_weights(), file)
    file.write_bytes(file.read_bytes()[:100_000])


@pytest.mark.parametrize(
    'write',
    [
        code_in_a_pickle,
        half_a_file,
        lambda file: file.write_text('<html>404 Not Found</html>'),
        lambda file: file.write_bytes(b''),
        lambda file: torch.save([1, 2], file),
    ],
)
def test_broken_or_foreign_file(tmp_path, write):
    file = tmp_path / 'vgg16.pth'
    write(file)
    with pytest.raises(ValueError) as error:
        build_backbone(file).init_weights()
    assert str(file) in str(error.value) and TORCHVISION_VGG16 in str(error.value)


def test_missing_key_changes_nothing(tmp_path):
    weights = vgg16_weights()
    del weights['features.28.bias']
    file = tmp_path / 'vgg16.pth'
    torch.save(weights, file)
    backbone = build_backbone(file)
    before = backbone.features[0].weight.clone()
    with pytest.raises(ValueError, match=r"vgg16\.pth has no weights 'features.28.b"):
        backbone.init_weights()
    assert torch.equal(backbone.features[0].weight, before)


def test_wrong_shape(tmp_path):
    file = tmp_path / 'vgg16.pth'
    torch.save(vgg16_weights(fc6_inputs=18), file)
    with pytest.raises(ValueError, match=r'\(6, 18\).* needs \(6, 8\)'):
        build_head(file).init_weights()


def test_module_without_such_layers():
    init_cfg = dict(type='mmdet_ohem.TorchvisionVGG16')
    backbone = MODELS.build(dict(type='mmdet_ohem.VGGCNNM1024', init_cfg=init_cfg))
    with pytest.raises(ValueError, match='VGGCNNM1024'):
        backbone.init_weights()


def test_init_cfg_none_reads_no_file():
    backbone = VGG16(init_cfg=None)
    backbone.init_weights()
    assert backbone.features[0].weight.std() > 0


def test_a_download_that_stops_half_way_leaves_nothing(tmp_path, monkeypatch):
    half = tmp_path / 'served' / 'vgg16-397923af.pth'
    half.parent.mkdir()
    half.write_bytes(b'the first part')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'cache'))
    download = torch.hub.download_url_to_file
    monkeypatch.setattr(
        torch.hub,
        'download_url_to_file',
        lambda url, *args: download(half.as_uri(), *args, progress=False),
    )
    with pytest.raises(OSError, match='could not be downloaded.*put it at'):
        TorchvisionVGG16()(VGG16())
    assert list((tmp_path / 'cache').rglob('*.pth*')) == []
