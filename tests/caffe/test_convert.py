"""Converted weights against a plain forward pass on the original blobs."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from support import caffe_reference as caffe
from support.caffe_reference import SMALL, blobs_of, varint
from support.tools import ROOT
from support.vgg_weights import vgg16_weights

from mmdet_ohem.caffe.convert import convert

CONFIGS = dict(
    vgg16='fast_rcnn_vgg16_caffe_ohem_voc07.py', vggm='fast_rcnn_vggm_ohem_voc07.py'
)
FORMATS = [
    dict(),
    dict(double=True),
    dict(v1=True, old_shape=True),
    dict(v1=True, double=True, old_shape=True),
]


def build(net, fc_widths, **init_cfg):
    init_default_scope('mmdet')
    model = Config.fromfile(ROOT / 'configs' / CONFIGS[net]).model
    model.roi_head.bbox_head.fc_out_channels = fc_widths
    if init_cfg:
        model.backbone.init_cfg = model.roi_head.bbox_head.init_cfg = init_cfg
    return MODELS.build(model).eval()


@functools.cache
def image_and_rois():
    """BGR (H, W, 3) in uint8, of a size that no stride divides; boxes in pixels."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (111, 94, 3), dtype=np.uint8)
    corners = rng.uniform(0, (60, 80), (12, 2))
    sizes = rng.uniform(3, (40, 60), (12, 2))
    rois = np.hstack([corners, corners + sizes]).astype(np.float32)
    rois[0] = (0, 0, 93, 110)
    return image, rois


@functools.cache
def caffe_forward(net, kind):
    image, rois = image_and_rois()
    pixels = image - np.array([102.9801, 115.9465, 122.7717])
    return caffe.forward(net, blobs_of(net, kind), pixels.transpose(2, 0, 1), rois)


def our_forward(detector):
    """fc7, scores and normalised deltas of the same image."""
    image, rois = image_and_rois()
    inputs = [torch.from_numpy(image.transpose(2, 0, 1).copy())]
    batch = detector.data_preprocessor(dict(inputs=inputs))['inputs']
    head = detector.roi_head.bbox_head
    seen = []
    head.fc7.register_forward_hook(lambda *args: seen.append(args[-1].relu()))
    with_index = torch.cat([torch.zeros(len(rois), 1), torch.tensor(rois)], dim=1)
    with torch.no_grad():
        feats = detector.extract_feat(batch)
        pooled = detector.roi_head.bbox_roi_extractor(feats, with_index)
        scores, deltas = head(pooled)
    return seen[0], scores, deltas


@pytest.mark.parametrize('net', ['vgg16', 'vggm'])
@pytest.mark.parametrize('layout', FORMATS, ids=str)
def test_a_detector_computes_what_caffe_computes(tmp_path, net, layout):
    blobs = blobs_of(net, 'detector')
    source, target = tmp_path / 'detector.caffemodel', tmp_path / 'new' / 'detector.pth'
    caffe.write_caffemodel(source, caffe.layer_list(net, blobs), **layout)
    conversion = convert(str(source), str(target))
    assert 'detector of 20 classes' in conversion.title
    assert conversion.taken == list(blobs)
    assert not conversion.left and not conversion.missing

    detector = build(net, SMALL)
    load_checkpoint(detector, str(target), map_location='cpu', strict=True)
    compare_detectors(detector, caffe_forward(net, 'detector'))


def compare_detectors(detector, of_caffe):
    fc7, scores, deltas = of_caffe
    our_fc7, our_scores, our_deltas = our_forward(detector)
    assert fc7.std() > 0.3 and scores.std() > 0.3 and deltas.std() > 0.05
    np.testing.assert_allclose(our_fc7, fc7, atol=1e-4)
    # background: first in Caffe, last here
    np.testing.assert_allclose(our_scores[:, -1], scores[:, 0], atol=1e-4)
    np.testing.assert_allclose(our_scores[:, :-1], scores[:, 1:], atol=1e-4)
    probabilities = our_scores.softmax(dim=1).numpy()
    np.testing.assert_allclose(
        np.roll(probabilities, 1, axis=1), caffe.softmax(scores), atol=1e-4
    )
    plain = our_deltas.numpy() * np.tile([0.1, 0.1, 0.2, 0.2], 20)
    np.testing.assert_allclose(plain, deltas[:, 4:], atol=1e-4)

    _, rois = image_and_rois()
    coder = detector.roi_head.bbox_head.bbox_coder
    boxes = coder.decode(torch.tensor(rois), our_deltas).reshape(len(rois), -1).numpy()
    same_convention = caffe.decode(rois, deltas[:, 4:], plus_one=False)
    np.testing.assert_allclose(boxes, same_convention, atol=1e-3)
    distance = np.abs(boxes - caffe.decode(rois, deltas[:, 4:], plus_one=True))
    print(
        f'to the boxes of Caffe: mean {distance.mean():.3f}, max {distance.max():.3f}'
    )
    assert 0 < distance.mean() < 1  # pixels


@pytest.mark.parametrize('net', ['vgg16', 'vggm'])
def test_an_imagenet_classifier_is_what_training_starts_from(tmp_path, net):
    blobs = blobs_of(net, 'classifier')
    source, target = tmp_path / 'imagenet.caffemodel', tmp_path / 'imagenet.pth'
    layers = caffe.layer_list(net, blobs)
    caffe.write_caffemodel(source, layers, v1=True, old_shape=True)
    conversion = convert(str(source), str(target))
    assert conversion.title.endswith('ImageNet classifier')
    assert conversion.left == ['fc8 (1, 1, 1000, 16)']
    assert conversion.missing == ['cls_score', 'bbox_pred']

    weights = dict(type='mmdet_ohem.ConvertedWeights', checkpoint=str(target))
    detector = build(net, SMALL, **weights)
    detector.init_weights()
    (fc7,) = caffe_forward(net, 'classifier')
    np.testing.assert_allclose(our_forward(detector.eval())[0], fc7, atol=1e-4)
    new_layer = detector.roi_head.bbox_head.fc_cls.weight
    assert new_layer.std().item() == pytest.approx(0.01, rel=0.2)  # BBoxHead's own


@pytest.mark.parametrize('twice', [True, False], ids=['twice', 'once'])
def test_the_read_only_roi_network_of_ohem_training(tmp_path, twice):
    """Its layers come first and share their weights, which stand in it or in both."""
    blobs = blobs_of('vggm', 'detector')
    layers = caffe.layer_list('vggm', blobs)
    start = next(i for i, layer in enumerate(layers) if layer[0] == 'roi_pool5')
    read_only = [(f'{name}_readonly', *rest) for name, *rest in layers[start:]]
    trained = [(n, kind, b if twice else []) for n, kind, b in layers[start:]]
    source = tmp_path / 'snapshot.caffemodel'
    caffe.write_caffemodel(source, layers[:start] + read_only + trained)
    conversion = convert(str(source), str(tmp_path / 'new.pth'))
    assert 'fc6_readonly (24, 18432)' in conversion.left
    new = torch.load(tmp_path / 'new.pth', weights_only=True)['state_dict']
    fc6 = new['roi_head.bbox_head.fc6.weight']
    assert np.array_equal(fc6, blobs['fc6'][0]) and len(new) == 2 * len(blobs)


def test_extra_layers_are_named(tmp_path):
    extra = ('extra', 'InnerProduct', [np.zeros((3, 5), np.float32)])
    source = tmp_path / 'more.caffemodel'
    layers = caffe.layer_list('vggm', blobs_of('vggm', 'detector'))
    caffe.write_caffemodel(source, [extra, *layers])
    conversion = convert(str(source), str(tmp_path / 'new.pth'))
    assert conversion.left == ['extra (3, 5)']


@pytest.mark.parametrize(
    ('make', 'mean', 'std', 'fc'),
    [
        ('torchvision', [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True),
        ('openmmlab', [123.675, 116.28, 103.53], [1, 1, 1], False),
    ],
)
def test_vgg16_of_torchvision_and_openmmlab(tmp_path, make, mean, std, fc):
    weights = vgg16_weights(fc6_inputs=512 * 7 * 7)
    if make == 'openmmlab':  # SSD's fc6 and fc7 are convolutions of other sizes
        weights = {k: w for k, w in weights.items() if k.startswith('features')}
        weights.update({'features.31.weight': torch.zeros(1024, 512, 3, 3)})
        weights.update({'features.33.weight': torch.zeros(1024, 1024, 1, 1)})
    torch.save(weights, tmp_path / 'vgg16.pth')
    target = tmp_path / 'new.pth'
    conversion = convert(str(tmp_path / 'vgg16.pth'), str(target))
    wanted = dict(mean=mean, std=std, bgr_to_rgb=True)
    assert conversion.data_preprocessor == wanted
    assert conversion.missing[0] == ('cls_score' if fc else 'fc6')

    new = torch.load(target, weights_only=True)
    assert new['meta']['data_preprocessor'] == wanted
    for name, weight in weights.items():
        ours = f'backbone.{name}'
        if ours in new['state_dict']:
            assert torch.equal(new['state_dict'][ours], weight)
    assert sum(name.startswith('backbone') for name in new['state_dict']) == 26
    if fc:
        head = 'roi_head.bbox_head'
        fc7 = new['state_dict'][f'{head}.fc7.weight']
        assert torch.equal(fc7, weights['classifier.3.weight'])
    model = build(
        'vgg16', (6, 6), type='mmdet_ohem.ConvertedWeights', checkpoint=str(target)
    )
    model.backbone.init_weights()
    assert torch.equal(model.backbone.features[28].bias, weights['features.28.bias'])
    if not fc:
        with pytest.raises(ValueError, match=r'new.pth has no weights .*fc6'):
            model.roi_head.bbox_head.init_weights()


LAYER = varint(100 << 3 | 2)  # field 100, length-delimited


@pytest.mark.parametrize(
    'content, words',
    [
        (LAYER + varint(4) + b'\x0a\x02\xff\xfe', 'utf-8'),
        (b'\xff' * 20, 'no number'),
        ((LAYER + varint(0)) * 20_000, 'more than 10000 layers'),
        (b'\x28\x01' * 20_000, 'more than 10000 layers'),
    ],
)
def test_harmful_caffemodels_are_one_sentence(tmp_path, content, words):
    (tmp_path / 'harmful.caffemodel').write_bytes(content)
    with pytest.raises(ValueError, match=f'harmful.caffemodel.*{words}'):
        convert(str(tmp_path / 'harmful.caffemodel'), str(tmp_path / 'new.pth'))


def test_a_layer_of_3_gb_that_takes_no_room_on_the_disk_is_not_read(tmp_path):
    source = tmp_path / 'sparse.caffemodel'
    with open(source, 'wb') as file:
        file.write(LAYER + varint(3 * 2**30))
        file.truncate(file.tell() + 3 * 2**30)
    with pytest.raises(ValueError, match='sparse.caffemodel.*layer has 3221225472 byt'):
        convert(str(source), str(tmp_path / 'new.pth'))


def test_a_missing_file_says_how_to_make_it(tmp_path):
    checkpoint = str(tmp_path / 'vgg_cnn_m_1024.pth')
    init_cfg = dict(type='mmdet_ohem.ConvertedWeights', checkpoint=checkpoint)
    with pytest.raises(FileNotFoundError) as error:
        build('vggm', SMALL, **init_cfg).init_weights()
    for word in (checkpoint, 'convert_caffe.py', 'fetch_imagenet_models.sh'):
        assert word in str(error.value)


def test_weights_of_the_other_network_are_refused(tmp_path):
    source, target = tmp_path / 'vggm.caffemodel', tmp_path / 'vggm.pth'
    layers = caffe.layer_list('vggm', blobs_of('vggm', 'classifier'))
    caffe.write_caffemodel(source, layers)
    convert(str(source), str(target))
    init_cfg = dict(type='mmdet_ohem.ConvertedWeights', checkpoint=str(target))
    with pytest.raises(ValueError, match=r"vggm.pth has no weights 'backbone.features"):
        build('vgg16', SMALL, **init_cfg).init_weights()


# getrusage's maximum would start with the memory of the process that started it.
MEASURE = """
import re, sys, time
start = time.time()
from mmdet_ohem.caffe import convert
def peak():
    status = open('/proc/self/status').read()
    return int(re.search(r'VmHWM:\\s*(\\d+) kB', status).group(1)) / 1e3
imports = peak()
print(convert(*sys.argv[1:]).title)
print(imports, peak(), time.time() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='memory is read from /proc')
def test_full_size(tmp_path):
    """Memory: at most 2.5 times the file. The forward pass: as at small size. VGG16
    is the larger of the two networks."""
    blobs = caffe.random_blobs('vgg16', (4096, 4096), 'detector')
    source, target = tmp_path / 'full.caffemodel', tmp_path / 'full.pth'
    caffe.write_caffemodel(source, caffe.layer_list('vgg16', blobs))
    size = source.stat().st_size / 1e6
    measured = subprocess.run(
        [sys.executable, '-c', MEASURE, source, target],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert measured.returncode == 0, measured.stderr
    imports, memory, seconds = map(float, measured.stdout.split()[-3:])
    print(f'{size:.0f} MB: {memory:.0f} MB, {imports:.0f} at first, {seconds:.1f} s')
    assert memory - imports < 2 * size
    # A PyTorch for CUDA takes more memory before anything is read.
    if torch.version.cuda is None:
        assert memory < 2.5 * size

    detector = build('vgg16', (4096, 4096))
    load_checkpoint(detector, str(target), map_location='cpu', strict=True)
    image, rois = image_and_rois()
    pixels = image - np.array([102.9801, 115.9465, 122.7717], dtype=np.float32)
    pixels = pixels.astype(np.float32).transpose(2, 0, 1)
    compare_detectors(detector, caffe.forward('vgg16', blobs, pixels, rois))
