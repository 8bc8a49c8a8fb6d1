import math
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmdet_ohem.models.vgg import VGG16, VGGCNNM1024

CONFIGS = Path(__file__).parents[2] / 'configs'


def layer_size(size, kernel, stride=1, padding=0, rounding=math.floor):
    """Caffe's size of a layer's output: pooling layers round up."""
    return rounding((size + 2 * padding - kernel) / stride) + 1


def vgg16_size(size):
    for _ in range(4):  # pool1 to pool4; the 3x3 convolutions keep the size
        size = layer_size(size, kernel=2, stride=2, rounding=math.ceil)
    return size


def vggm_size(size):
    size = layer_size(size, kernel=7, stride=2)
    size = layer_size(size, kernel=3, stride=2, rounding=math.ceil)
    size = layer_size(size, kernel=5, stride=2, padding=1)
    return layer_size(size, kernel=3, stride=2, rounding=math.ceil)


@pytest.mark.parametrize('sizes', [range(33, 65), (600, 563, 1000)])
@pytest.mark.parametrize(
    ('backbone', 'caffe_size'), [(VGG16, vgg16_size), (VGGCNNM1024, vggm_size)]
)
def test_output_size_is_caffes(backbone, caffe_size, sizes):
    backbone = backbone().to('meta')  # shapes without arithmetic
    for height in sizes:
        width = 1065 - height
        (feats,) = backbone(torch.empty(1, 3, height, width, device='meta'))
        assert feats.shape == (1, 512, caffe_size(height), caffe_size(width))


def test_vggm_trains_in_float16_where_activations_are_large():
    """The square of 300, in the normalisation, is more than float16 holds."""
    torch.manual_seed(0)
    backbone = VGGCNNM1024(frozen_stages=0)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        scale = 300 / backbone.conv1(image).amax()
        backbone.conv1.weight.mul_(scale)
        backbone.conv1.bias.mul_(scale)
        (expected,) = backbone(image)
    with torch.autocast('cpu', torch.float16):
        (feats,) = backbone(image)
    feats.sum().backward()
    torch.testing.assert_close(feats.float(), expected, rtol=0.02, atol=0.02)
    for name, parameter in backbone.named_parameters():
        if name.endswith('weight'):
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    x = torch.full((1, 8, 2, 2), 300.0).half().requires_grad_()
    backbone.norm(x).sum().backward()
    assert x.grad.all()


def test_vgg16_layers_and_stages():
    backbone = VGG16()
    convs = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert [conv.out_channels for conv in convs] == widths
    assert all(conv.kernel_size == (3, 3) for conv in convs)
    # torchvision counts ReLU and pooling too: conv5_3 is features.28
    assert backbone.features[28] is convs[-1]
    assert len(backbone.features) == 30


@pytest.mark.parametrize(
    ('backbone', 'frozen'),
    [
        # conv1_1, conv1_2, conv2_1, conv2_2
        (VGG16, ['features.0', 'features.2', 'features.5', 'features.7']),
        (VGGCNNM1024, ['conv1']),
    ],
)
def test_frozen_stages(backbone, frozen):
    model = backbone()
    expected = {f'{layer}.{kind}' for layer in frozen for kind in ('weight', 'bias')}

    def untrained():
        return {n for n, p in model.named_parameters() if not p.requires_grad}

    assert untrained() == expected  # before train() was ever called
    assert model.train() is model and untrained() == expected
    assert model.eval() is model and untrained() == expected
    assert all(p.requires_grad for p in backbone(frozen_stages=0).parameters())

    model.train()
    (feats,) = model(torch.rand(1, 3, 64, 64))
    feats.sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in expected)


def test_frozen_stages_of_vgg16_stay_in_eval_mode():
    model = VGG16().train()
    modes = [layer.training for layer in model.features]
    assert modes == [False] * 10 + [True] * 20  # to pool2, from conv3_1


def test_vggm_is_caffes_network():
    """Against the layers one by one, with LRN as Caffe writes it down."""
    torch.manual_seed(0)
    model = VGGCNNM1024().double().eval()
    image = torch.randn(1, 3, 67, 80).double() * 50

    def lrn(x):
        squares = torch.zeros_like(x)
        channels = x.shape[1]
        for c in range(channels):
            near = x[:, max(c - 2, 0) : min(c + 3, channels)]
            squares[:, c] = (near**2).sum(dim=1)
        return x / (2 + 0.0005 / 5 * squares) ** 0.75

    def conv(x, layer, **kwargs):
        x = torch.nn.functional.conv2d(x, layer.weight, layer.bias, **kwargs)
        return x.clamp(min=0)

    def pool(x):
        return torch.nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)

    x = pool(lrn(conv(image, model.conv1, stride=2)))
    x = pool(lrn(conv(x, model.conv2, stride=2, padding=1)))
    for layer in (model.conv3, model.conv4, model.conv5):
        x = conv(x, layer, padding=1)
    with torch.no_grad():
        (feats,) = model(image)
    torch.testing.assert_close(feats, x)
    widths = [getattr(model, f'conv{i}').out_channels for i in range(1, 6)]
    assert widths == [96, 256, 512, 512, 512]


@pytest.mark.parametrize('name', ['VGG16', 'VGGCNNM1024'])
def test_random_weights_are_initialised_through_mmengine(name):
    model = MODELS.build(dict(type=f'mmdet_ohem.{name}'))
    model.init_weights()
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv in convs:
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx(
            math.sqrt(2 / fan_out), rel=0.05
        )
        assert conv.bias.abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fast_rcnn_vgg16', 'fast_rcnn_vggm'])
def test_the_papers_detector_trains_and_predicts(name):
    """The full network of the config, from random weights, on small images."""
    torch.manual_seed(0)
    init_default_scope('mmdet')
    config = Config.fromfile(CONFIGS / '_base_' / 'models' / f'{name}.py')
    assert config.model.train_cfg.rcnn.assigner.neg_iou_thr == (0.1, 0.5)
    config.model.backbone.init_cfg = None
    config.model.roi_head.bbox_head.init_cfg = None
    detector = MODELS.build(config.model)

    boxes = torch.rand(200, 4) * 60
    boxes[:, 2:] += boxes[:, :2] + 8
    gt_boxes = boxes[:2] + 1

    def two_images():
        samples = []
        for _ in range(2):
            shape = dict(img_shape=(128, 128), ori_shape=(128, 128))
            sample = DetDataSample(metainfo=dict(scale_factor=(1.0, 1.0), **shape))
            sample.proposals = InstanceData(bboxes=boxes, scores=torch.ones(200))
            labels = torch.tensor([3, 19])
            sample.gt_instances = InstanceData(bboxes=gt_boxes, labels=labels)
            samples.append(sample)
        images = [(torch.rand(3, 128, 128) * 255).byte() for _ in range(2)]
        return detector.data_preprocessor(dict(inputs=images, data_samples=samples))

    detector.train()
    losses = detector(**two_images(), mode='loss')
    total = losses['loss_cls'] + losses['loss_bbox']
    assert losses['loss_cls'].item() == pytest.approx(math.log(21), rel=0.3)
    assert torch.isfinite(total)
    total.backward()
    head = detector.roi_head.bbox_head
    for layer in (head.fc6, head.fc7, head.fc_cls, head.fc_reg):
        assert layer.weight.grad.abs().sum() > 0

    detector.eval()
    with torch.no_grad():
        results = detector(**two_images(), mode='predict')
    for sample in results:
        assert len(sample.pred_instances) <= 2000
        assert sample.pred_instances.bboxes.shape[1] == 4


@pytest.mark.parametrize('backbone', [VGG16, VGGCNNM1024])
def test_frozen_stages_out_of_range_are_named(backbone):
    with pytest.raises(ValueError, match='backbone.frozen_stages.*0 to 5, got 6'):
        backbone(frozen_stages=6)
