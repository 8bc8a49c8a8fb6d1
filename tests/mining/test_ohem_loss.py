"""OHEMLoss against sorting by hand."""

import re

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope, Registry, init_default_scope
from mmengine.structures import InstanceData
from support.tools import ROOT
from torch import nn
from torch.nn import functional as F

from mmdet_ohem import OHEMLoss
from mmdet_ohem.mining.ohem_loss import hardest

SOFTMAX = dict(type='mmdet.CrossEntropyLoss')
SIGMOID = dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True)
FOCAL = dict(type='mmdet.FocalLoss', use_sigmoid=True)


def random_batch(seed, count=20, classes=5):
    """Scores (count, classes) that need a gradient, and labels, background last."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, classes, generator=generator) * 3
    labels = torch.randint(classes, (count,), generator=generator)
    return scores.requires_grad_(), labels


@pytest.mark.parametrize(
    'num, valid, expected',
    [
        (1, None, [3]),
        (3, None, [3, 1, 4]),  # 1 and 4 are equal: the lower index first
        (9, None, [3, 1, 4, 2, 0]),
        (0.4, None, [3, 1]),
        (1.0, None, [3, 1, 4, 2, 0]),
        (0.01, None, [3]),  # at least one
        (2, [1, 1, 1, 0, 0], [1, 2]),
        (0.67, [1, 1, 1, 0, 0], [1, 2]),  # of the three that count
        (2, [0, 0, 0, 0, 0], []),
    ],
)
def test_hardest(num, valid, expected):
    losses = torch.tensor([0.1, 2.0, 0.5, 7.0, 2.0])
    valid = None if valid is None else torch.tensor(valid, dtype=torch.bool)
    assert hardest(losses, num, valid).tolist() == expected


@pytest.mark.parametrize('num', [4, 0.2, 1.0, 100])
def test_gradient_reaches_the_hardest_alone(num):
    scores, labels = random_batch(seed=1)
    loss = OHEMLoss(SOFTMAX, num)(scores, labels)
    loss.backward()

    count = min(num, 20) if isinstance(num, int) else round(num * 20)
    by_hand = (-F.log_softmax(scores.detach(), dim=1)[range(20), labels]).numpy()
    hard = sorted(range(20), key=lambda i: -by_hand[i])[:count]
    assert loss.item() == pytest.approx(by_hand[hard].mean(), rel=1e-5)
    assert scores.grad.any(dim=1).nonzero().flatten().tolist() == sorted(hard)


@pytest.mark.parametrize('config', [SIGMOID, FOCAL], ids=['sigmoid', 'focal'])
def test_a_row_of_several_columns_is_one_example(config):
    scores, labels = random_batch(seed=2)
    loss = OHEMLoss(config, num=3, use_sigmoid=True)(scores, labels)
    loss.backward()

    probability = scores.detach().sigmoid()
    target = F.one_hot(labels, 5)
    columns = -torch.where(target == 1, probability, 1 - probability).log()
    if config is FOCAL:  # Lin et al., ICCV 2017: gamma 2, alpha 0.25
        alpha = torch.where(target == 1, 0.25, 0.75)
        columns *= alpha * (probability - target).abs() ** 2
    by_row = columns.sum(dim=1)
    assert loss.item() == pytest.approx(
        by_row.sort().values[-3:].mean().item(), rel=1e-4
    )
    assert scores.grad.any(dim=1).sum() == 3


@pytest.mark.parametrize('shape', ['rows', 'columns'])
def test_entries_of_weight_0_are_never_mined(shape):
    scores, labels = random_batch(seed=3)
    by_hand = F.cross_entropy(scores, labels, reduction='none').detach()
    weight = torch.ones(20)
    weight[by_hand.argsort()[-5:]] = 0
    kept = by_hand.sort().values[:15]
    if shape == 'rows':
        loss = OHEMLoss(SOFTMAX, num=0.2)(scores, labels, weight)
        assert loss.item() == pytest.approx(kept[-3:].mean().item())  # 0.2 * 15
    else:  # box losses have a weight for each column
        boxes = by_hand[:, None].repeat(1, 4)
        box_loss = OHEMLoss(dict(type='mmdet.L1Loss'), num=3)
        loss = box_loss(boxes, torch.zeros(20, 4), weight[:, None].repeat(1, 4))
        assert loss.item() == pytest.approx(4 * kept[-3:].mean().item())


def test_ignored_labels_do_not_count():
    scores, labels = random_batch(seed=4)
    labels[:10] = 255
    loss = OHEMLoss(dict(SOFTMAX, ignore_index=255, avg_non_ignore=True), num=0.5)
    rest = F.cross_entropy(scores[10:], labels[10:], reduction='none').sort().values
    assert loss(scores, labels).item() == pytest.approx(rest[-5:].mean().item())

    labels[:10] = -100  # the default of PyTorch
    loss = OHEMLoss(SOFTMAX, num=0.5)
    assert loss(scores, labels).item() == pytest.approx(rest[-5:].mean().item())


def test_every_pixel_of_a_label_map_is_an_example():
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(3, (2, 4, 5), generator=generator)
    labels[0] = 255
    loss = OHEMLoss(dict(SOFTMAX, ignore_index=255), num=7)(scores, labels)
    by_hand = F.cross_entropy(scores[1:], labels[1:], reduction='none').flatten()
    assert loss.item() == pytest.approx(by_hand.sort().values[-7:].mean().item())


def test_the_normalizer_may_be_the_positives():
    scores, labels = random_batch(seed=6)
    hard = F.cross_entropy(scores, labels, reduction='none').sort().values[-4:].sum()
    by_positives = OHEMLoss(SOFTMAX, num=4, normalizer='avg_factor')
    assert by_positives(scores, labels, avg_factor=2).item() == pytest.approx(
        hard.item() / 2
    )
    # By default the head's avg_factor is not used.
    assert OHEMLoss(SOFTMAX, 4)(scores, labels, avg_factor=2).item() == pytest.approx(
        hard.item() / 4
    )
    with pytest.raises(ValueError, match="OHEMLoss.normalizer is 'avg_factor', but"):
        by_positives(scores, labels)


@pytest.mark.parametrize('count', [0, 6])
def test_without_an_example_the_loss_is_0_and_keeps_the_graph(count):
    scores, labels = random_batch(seed=7, count=count)
    loss = OHEMLoss(SOFTMAX, num=4)(scores, labels, torch.zeros(count))
    loss.backward()
    assert loss == 0 and not scores.grad.any()


def test_reduction_override_none_is_the_loss_that_is_wrapped():
    """So a RoI head with an OHEMLoss can still be ranked by OHEMSampler."""
    scores, labels = random_batch(seed=8)
    losses = OHEMLoss(SOFTMAX, 4)(scores, labels, reduction_override='none')
    torch.testing.assert_close(
        losses, F.cross_entropy(scores, labels, reduction='none')
    )


class MMPreTrainLoss(nn.Module):
    """Stands in for MMPreTrain's losses, with their documented signature."""

    def forward(
        self, cls_score, label, weight=None, avg_factor=None, reduction_override=None
    ):
        loss = F.cross_entropy(cls_score, label, reduction=reduction_override)
        return loss if weight is None else loss * weight


def test_a_classifier_of_mmpretrain_finds_it():
    mmpretrain = Registry('model', parent=ROOT_MODELS, scope='mmpretrain_double')
    mmpretrain.register_module(module=MMPreTrainLoss)
    with DefaultScope.overwrite_default_scope('mmpretrain_double'):
        loss = mmpretrain.build(
            dict(type='mmdet_ohem.OHEMLoss', num=4, loss=dict(type='MMPreTrainLoss'))
        )
    scores, labels = random_batch(seed=9)
    hard = F.cross_entropy(scores, labels, reduction='none').sort().values[-4:].mean()
    # As ClsHead calls it.
    assert loss(scores, labels, avg_factor=20).item() == pytest.approx(hard.item())


@pytest.mark.parametrize(
    'keys, error, words',
    [
        (dict(num='64'), TypeError, "OHEMLoss.num must be an int.*'64' \\(str\\)"),
        (dict(num=True), TypeError, 'OHEMLoss.num must be an int'),
        (dict(num=0), ValueError, 'OHEMLoss.num must be an int of 1 or more.*got 0'),
        (dict(num=1.5), ValueError, r'as a float in \(0, 1\], got 1.5'),
        (dict(num=float('nan')), ValueError, r'as a float in \(0, 1\], got nan'),
        (dict(normalizer='batch'), ValueError, "OHEMLoss.normalizer.*'batch'"),
        (dict(loss=SIGMOID), ValueError, 'OHEMLoss.use_sigmoid=False but'),
        (dict(loss=nn.CrossEntropyLoss()), TypeError, 'no argument reduction_override'),
        (dict(weight=1), TypeError, "unexpected keyword argument 'weight'"),
    ],
)
def test_a_wrong_key_is_named_when_the_loss_is_built(keys, error, words):
    with pytest.raises(error, match=words):
        OHEMLoss(**dict(dict(loss=SOFTMAX, num=4), **keys))


class StaysReduced(nn.Module):
    def forward(self, pred, target, weight=None, reduction_override=None):
        return F.cross_entropy(pred, target)


@pytest.mark.parametrize(
    'loss, returned',
    [
        (StaysReduced(), r'StaysReduced, returned Tensor \(\) for 20 examples'),
        (dict(type='mmdet.SeesawLoss', num_classes=4), r'SeesawLoss, returned dict'),
    ],
)
def test_a_loss_that_stays_reduced_is_refused_by_name(loss, returned):
    scores, labels = random_batch(seed=10, classes=6)
    with pytest.raises(ValueError, match=f'OHEMLoss.loss, a {returned}'):
        OHEMLoss(loss, num=4)(scores, labels % 4, torch.ones(20))


def retina_head(head_type, loss_cls, **kwargs):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type=head_type,
            num_classes=3,
            in_channels=4,
            feat_channels=4,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=1,
                ratios=[0.5, 1.0],
                strides=[8, 16],
            ),
            loss_cls=loss_cls,
            loss_bbox=dict(type='L1Loss'),
            train_cfg=Config(
                dict(
                    assigner=dict(
                        type='MaxIoUAssigner',
                        pos_iou_thr=0.5,
                        neg_iou_thr=0.4,
                        min_pos_iou=0,
                    ),
                    allowed_border=-1,
                    pos_weight=-1,
                )
            ),
            **kwargs,
        )
    )


def losses_of(head, maps):
    """The losses of two images of 64 x 48 and 50 x 40 px, padded to 64 x 64."""
    metas = [
        dict(img_shape=shape, pad_shape=(64, 64, 3)) for shape in ((64, 48), (50, 40))
    ]
    ground_truth = [
        InstanceData(
            bboxes=torch.tensor([[4.0, 4.0, 36.0, 40.0]]), labels=torch.tensor([1])
        ),
        InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)),
    ]
    return head.loss_by_feat(*head(maps), ground_truth, metas)


def feature_maps():
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(2, 4, size, size, generator=generator) for size in (8, 4)]


@pytest.mark.parametrize('reg_decoded_bbox', [False, True])
def test_all_levels_at_once_are_the_losses_of_retina_head(reg_decoded_bbox):
    focal = dict(type='FocalLoss', use_sigmoid=True)
    kwargs = dict(reg_decoded_bbox=reg_decoded_bbox)
    plain = losses_of(retina_head('RetinaHead', focal, **kwargs), feature_maps())
    at_once = losses_of(
        retina_head('mmdet_ohem.AllLevelsRetinaHead', focal, **kwargs), feature_maps()
    )
    for key in ('loss_cls', 'loss_bbox'):
        torch.testing.assert_close(at_once[key], sum(plain[key]))


def test_retina_head_mines_over_all_levels_and_images():
    loss_cls = dict(
        type='mmdet_ohem.OHEMLoss', num=6, use_sigmoid=True, loss=dict(SIGMOID)
    )
    head = retina_head('mmdet_ohem.AllLevelsRetinaHead', loss_cls)
    # Level by level, as MMDetection computes it, but of every anchor by itself.
    unreduced = retina_head('RetinaHead', dict(SIGMOID, reduction='none'))
    anchors = torch.cat(losses_of(unreduced, feature_maps())['loss_cls'])
    assert anchors.shape == (2 * 2 * (64 + 16), 3)
    expected = anchors.sum(dim=1).sort().values[-6:].mean()

    loss = losses_of(head, feature_maps())['loss_cls']
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_retinanet_config_takes_a_step():
    config = Config.fromfile(ROOT / 'configs' / 'retinanet_r50_fpn_ohem_coco.py')
    init_default_scope('mmdet')
    config.model.backbone.update(depth=18, init_cfg=None, base_channels=8)
    config.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    config.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    torch.manual_seed(0)
    detector = MODELS.build(config.model)
    mined = []
    inner = detector.bbox_head.loss_cls.loss
    inner.register_full_backward_hook(
        lambda module, grad_in, grad_out: mined.append(grad_out[0].any(dim=1).sum())
    )
    batch = detector.data_preprocessor(
        demo_mm_inputs(2, [[3, 128, 128], [3, 96, 128]], num_classes=80), True
    )
    losses, _ = detector.parse_losses(detector(**batch, mode='loss'))
    losses.backward()
    assert torch.isfinite(losses) and mined == [256]


def test_the_example_of_the_docs_trains_a_classifier():
    page = (ROOT / 'docs' / 'classifier.md').read_text()
    examples = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        torch.manual_seed(0)
        scope = {}
        exec(example, scope)
        assert scope['loss'].item() < 0.2
