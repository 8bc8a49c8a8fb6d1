import pytest
import torch
from mmdet.registry import MODELS

from mmdet_ohem.models.vgg import VGGBBoxHead


def small_head(**kwargs):
    return VGGBBoxHead(
        in_channels=3, roi_feat_size=2, fc_out_channels=(10, 8), num_classes=4, **kwargs
    )


def test_forward_is_two_layers_then_scores_and_boxes():
    head = small_head().eval()
    x = torch.randn(5, 3, 2, 2)
    # Channels first, then rows, then columns: the order of Caffe's blob and of
    # torchvision's classifier.
    flat = torch.stack([roi.reshape(-1) for roi in x])
    fc6 = (flat @ head.fc6.weight.T + head.fc6.bias).clamp(min=0)
    fc7 = (fc6 @ head.fc7.weight.T + head.fc7.bias).clamp(min=0)
    scores, deltas = head(x)
    assert scores.shape == (5, 5) and deltas.shape == (5, 16)
    torch.testing.assert_close(scores, fc7 @ head.fc_cls.weight.T + head.fc_cls.bias)
    torch.testing.assert_close(deltas, fc7 @ head.fc_reg.weight.T + head.fc_reg.bias)


def test_dropout_is_half_of_both_layers_and_only_in_training():
    torch.manual_seed(0)
    head = VGGBBoxHead(1, roi_feat_size=1, fc_out_channels=(4000, 4000), num_classes=1)
    with torch.no_grad():
        # Each unit of fc7 copies one of fc6, and every unit of fc6 is 1.
        head.fc6.weight.fill_(1), head.fc6.bias.fill_(0)
        head.fc7.weight.copy_(torch.eye(4000)), head.fc7.bias.fill_(0)
        head.fc_cls.weight.fill_(1), head.fc_cls.bias.fill_(0)
    x = torch.ones(1, 1, 1, 1)
    scores, _ = head.train()(x)
    # A quarter of the units survives both layers, each doubled twice.
    assert scores[0, 0].item() == pytest.approx(4000, rel=0.1)
    assert scores[0, 0].item() % 4 == 0 and scores[0, 0].item() != 4000
    scores, _ = head.eval()(x)
    assert scores[0, 0].item() == 4000


def test_no_rois():
    scores, deltas = small_head()(torch.zeros(0, 3, 2, 2))
    assert scores.shape == (0, 5) and deltas.shape == (0, 16)


def test_class_agnostic_boxes():
    _, deltas = small_head(reg_class_agnostic=True)(torch.zeros(1, 3, 2, 2))
    assert deltas.shape == (1, 4)


@pytest.mark.parametrize(
    'init_cfg',
    [
        None,
        dict(type='Constant', val=3, override=dict(name='fc6')),
        [dict(type='Constant', val=3, override=dict(name='fc6'))],
    ],
)
def test_initial_weights(init_cfg):
    torch.manual_seed(0)
    head = MODELS.build(
        dict(
            type='mmdet_ohem.VGGBBoxHead',
            in_channels=64,
            roi_feat_size=2,
            fc_out_channels=(300, 200),
            num_classes=20,
            init_cfg=init_cfg,
        )
    )
    head.init_weights()
    assert head.fc_cls.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.fc_reg.weight.std().item() == pytest.approx(0.001, rel=0.05)
    xavier = (2 / (300 + 200)) ** 0.5
    assert head.fc7.weight.std().item() == pytest.approx(xavier, rel=0.05)
    if init_cfg is None:
        xavier = (2 / (64 * 4 + 300)) ** 0.5
        assert head.fc6.weight.std().item() == pytest.approx(xavier, rel=0.05)
    else:  # the caller's entry comes after the default for fc6
        assert (head.fc6.weight == 3).all()
    for layer in (head.fc6, head.fc7, head.fc_cls, head.fc_reg):
        assert (layer.bias == 0).all()
