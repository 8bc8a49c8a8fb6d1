"""R-FCN's parts against plain loops, and the whole detector with the sampler."""

import math
import warnings

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from support.reference import random_boxes
from support.shipped_heads import SIDE, every_sample_checked, make_samples
from support.tools import ROOT

from mmdet_ohem.compare.config_changes import SAMPLERS, fitting_samplers, set_sampler
from mmdet_ohem.mining import candidate_losses, find_candidates
from mmdet_ohem.mining.fast_pass import FastPass, takes_fast_pass
from mmdet_ohem.models import MultiScaleTTAModel, ps_roi_align
from mmdet_ohem.reports.scoring import score_image

NUM_CLASSES = 3
MODEL = ROOT / 'configs' / '_base_' / 'models' / 'rfcn_r50.py'

# ------------------------------------------------------------------------ the pooling


def plain_ps_roi_align(maps, rois, k, scale, points):
    """(R, D, k, k), point after point: cell i of a map is centred at i + 0.5."""
    num_maps, height, width = maps.shape[1:]
    depth = num_maps // k**2
    pooled = np.zeros((len(rois), depth, k, k))
    for r, (image, x1, y1, x2, y2) in enumerate(rois * [1, *[scale] * 4]):
        bin_width, bin_height = (x2 - x1) / k, (y2 - y1) / k
        across = points or math.ceil(bin_width)
        down = points or math.ceil(bin_height)
        for row, column, d in np.ndindex(k, k, depth):
            plane = maps[int(image), (row * k + column) * depth + d]
            values = [
                interpolate(
                    plane,
                    y1 + (row + (i + 0.5) / down) * bin_height - 0.5,
                    x1 + (column + (j + 0.5) / across) * bin_width - 0.5,
                )
                for i, j in np.ndindex(down, across)
            ]
            pooled[r, d, row, column] = np.mean(values)
    return pooled


def interpolate(plane, y, x):
    """Bilinear; beyond the centres of the outer cells the value is theirs."""
    height, width = plane.shape
    y, x = np.clip([y, x], 0, [height - 1, width - 1])
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    y, x = y - top, x - left
    above = plane[top, left] * (1 - x) + plane[top, right] * x
    below = plane[bottom, left] * (1 - x) + plane[bottom, right] * x
    return above * (1 - y) + below * y


def plain_ps_roi_pool(maps, rois, k, scale):
    """The paper's Equation 1 with the rounding of psroi_pooling_layer.cu."""
    num_maps, height, width = maps.shape[1:]
    depth = num_maps // k**2
    pooled = np.zeros((len(rois), depth, k, k))
    for r, (image, *corners) in enumerate(rois):
        x1, y1, x2, y2 = (math.floor(corner + 0.5) for corner in corners)
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        for row, column, d in np.ndindex(k, k, depth):
            top = math.floor(y1 + row * (y2 - y1) / k)
            bottom = math.ceil(y1 + (row + 1) * (y2 - y1) / k)
            left = math.floor(x1 + column * (x2 - x1) / k)
            right = math.ceil(x1 + (column + 1) * (x2 - x1) / k)
            cells = maps[int(image), (row * k + column) * depth + d]
            cells = cells[max(top, 0) : bottom, max(left, 0) : right]
            pooled[r, d, row, column] = cells.mean() if cells.size else 0
    return pooled


def random_rois(rng, count, width, height):
    boxes = random_boxes(rng, count, width, height)
    return np.column_stack([np.arange(count) % 2, boxes]).astype(np.float32)


@pytest.mark.parametrize('k, points', [(1, 0), (3, 0), (3, 2), (7, 0)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_every_bin_is_the_mean_of_points_of_its_own_maps(k, points, dtype):
    rng = np.random.default_rng(k)
    maps = rng.normal(size=(2, k * k * 3, 12, 14))
    rois = random_rois(rng, 6, 14 * 16, 12 * 16)
    pooled = ps_roi_align(
        torch.from_numpy(maps).to(dtype), torch.from_numpy(rois), k, 1 / 16, points
    )
    assert pooled.dtype == dtype and pooled.shape == (6, 3, k, k)
    expected = plain_ps_roi_align(maps, rois.astype(float), k, 1 / 16, points)
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5, err_msg=f'seed {k}')


def test_gradient():
    rng = np.random.default_rng(0)
    maps = torch.from_numpy(rng.normal(size=(2, 9, 4, 5))).requires_grad_()
    rois = torch.from_numpy(random_rois(rng, 4, 5 * 16, 4 * 16).astype(float))
    assert torch.autograd.gradcheck(
        lambda maps: ps_roi_align(maps, rois, 3, 1 / 16), maps
    )


def test_distance_to_the_average_of_whole_cells():
    """A map whose cells hold their own place shows where each pooling looks: this one
    at the middle of a bin, the paper's at that of the cells which the bin touches."""
    rng = np.random.default_rng(0)
    k, scale = 7, 1 / 16
    place = np.broadcast_to(np.arange(40) + 0.5, (30, 40))
    maps = np.broadcast_to(place, (2, k * k, 30, 40))
    rois = random_rois(rng, 400, 40 * 16 - 32, 30 * 16 - 32)
    rois[:, 1:] += 16  # the bins stay inside the map
    ours = ps_roi_align(
        torch.from_numpy(maps.copy()), torch.from_numpy(rois), k, scale
    ).numpy()
    left, right = rois[:, [1]] * scale, rois[:, [3]] * scale
    middle = left + (right - left) * (np.arange(k) + 0.5) / k
    np.testing.assert_allclose(ours[:, 0], middle[:, None].repeat(k, axis=1), atol=1e-4)

    off = plain_ps_roi_pool(maps, rois.astype(float), k, scale) - ours
    # Half a cell by rounding to cells, and a pixel by rounding to pixels and by + 1.
    assert 0.3 < np.abs(off).max() < 0.5 + 1.5 * scale
    # The + 1 moves the middle of a RoI by half a pixel.
    assert off.mean() == pytest.approx(scale / 2, abs=0.01)


def test_the_averages_agree_where_no_rounding_takes_place():
    """RoIs of whole cells, as many as bins or a multiple: both take whole cells."""
    rng = np.random.default_rng(1)
    maps = rng.normal(size=(1, 9 * 2, 12, 12))
    for x1, y1, x2, y2 in ([0, 0, 48, 96], [16, 32, 112, 176]):
        theirs = plain_ps_roi_pool(
            maps, np.array([[0.0, x1, y1, x2 - 1, y2 - 1]]), 3, 1 / 16
        )
        ours = ps_roi_align(
            torch.from_numpy(maps), torch.tensor([[0.0, x1, y1, x2, y2]]), 3, 1 / 16
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


# --------------------------------------------------------------------------- the head


def small_model(**sampler) -> ConfigDict:
    """rfcn_r50.py with BasicBlocks, random weights and few classes."""
    model = Config.fromfile(MODEL).model
    del model.data_preprocessor  # the images here are tensors
    model.backbone.update(depth=18, base_channels=8, init_cfg=None, frozen_stages=-1)
    model.rpn_head.update(in_channels=32, feat_channels=16)
    model.roi_head.conv5 = None  # a ResLayer is never narrow
    model.roi_head.update(in_channels=32, feat_channels=24)
    model.roi_head.bbox_head.num_classes = NUM_CLASSES
    model.roi_head.bbox_roi_extractor.output_size = 3
    model.train_cfg.rpn.allowed_border = -1
    model.rpn_head.anchor_generator.scales = [1, 2, 4]
    model.train_cfg.rpn_proposal.update(nms_pre=60, max_per_img=30, min_bbox_size=4)
    model.train_cfg.rcnn.assigner.neg_iou_thr = 0.5
    model.train_cfg.rcnn.sampler = dict(
        dict(type='mmdet_ohem.OHEMSampler', num=16), **sampler
    )
    return model


def build(model: ConfigDict):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(model)
    detector.init_weights()
    head = detector.roi_head
    for conv in (head.new_conv, head.cls_conv, head.reg_conv):
        torch.nn.init.normal_(conv.weight, std=0.3)  # scores far apart
    return detector.train()


def images(seed: int) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_normal((2, 3, SIDE, SIDE), np.float32)
    return torch.from_numpy(values)


def test_scores_and_boxes_are_the_mean_over_bins_of_the_score_maps():
    head = build(small_model()).roi_head
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2, 32, 9, 8)).astype(np.float32))
    rois = random_rois(rng, 7, 8 * 16, 9 * 16)
    with torch.no_grad():
        outputs = head._bbox_forward(head.score_maps((x,), {}), torch.from_numpy(rois))
        feat = head.new_conv(x).clamp(min=0)
        for name, conv, depth in (
            ('cls_score', head.cls_conv, NUM_CLASSES + 1),
            ('bbox_pred', head.reg_conv, 4),
        ):
            maps = conv(feat).numpy()
            assert maps.shape == (2, 9 * depth, 9, 8)
            bins = plain_ps_roi_align(maps, rois.astype(float), 3, 1 / 16, 0)
            np.testing.assert_allclose(
                outputs[name], bins.mean(axis=(2, 3)), rtol=1e-4, atol=1e-4
            )


def test_the_detector_trains_and_mines_by_its_own_losses():
    """Whole maps are made once for a batch, and every parameter has a gradient, as DDP
    wants it, on images without objects too."""
    detector = build(small_model())
    head, calls = detector.roi_head, []
    head.cls_conv.register_forward_hook(lambda *args: calls.append(1))
    num_pos = []
    for seed, num_gts in enumerate((3, 3, 0)):
        samples = make_samples(seed, NUM_CLASSES, num_gts)
        with every_sample_checked(head) as sampled:
            losses = detector(images(seed), samples, 'loss')
        total, log = detector.parse_losses(losses)
        detector.zero_grad(set_to_none=True)
        total.backward()
        assert all(np.isfinite(float(value)) for value in log.values()), log
        missing = [
            name
            for name, parameter in detector.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        assert not missing
        assert len(sampled) == 2 and len(calls) == seed + 1
        assert all(0 < call.num_mined <= 16 < call.num_rois for call in sampled)
        num_pos.append(sum(call.num_pos for call in sampled))
    assert num_pos[0] + num_pos[1] > num_pos[2] == 0


def test_the_samplers_of_a_comparison_train():
    config = Config(dict(model=small_model()))
    names = fitting_samplers(config)
    assert set(SAMPLERS) - set(names) == {
        'score-hlr',
        'pisa',
    }  # for StandardRoIHead alone
    for name in names:
        config = Config(dict(model=small_model()))
        set_sampler(config, name)
        detector = build(config.model)
        losses = detector(images(0), make_samples(0, NUM_CLASSES), 'loss')
        detector.parse_losses(losses)[0].backward()
        assert detector.roi_head.cls_conv.weight.grad.any(), name


def ranked_image(head, seed, num_proposals=296):
    """Candidates, and the score maps of their image."""
    (sample, _) = make_samples(seed, NUM_CLASSES)
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, num_proposals, SIDE, SIDE)
    boxes[:30] = sample.gt_instances.bboxes.repeat(10, 1).numpy() + rng.normal(
        0, 3, (30, 4)
    )
    proposals = InstanceData(priors=torch.from_numpy(boxes))
    x = torch.from_numpy(rng.normal(size=(1, 32, 8, 8)).astype(np.float32))
    with torch.no_grad():
        maps = head.score_maps((x,), {})
    assigned = head.bbox_assigner.assign(proposals, sample.gt_instances)
    return (assigned, proposals, sample.gt_instances), maps


def test_both_read_only_passes_give_the_same_losses():
    head = build(small_model()).roi_head
    assert takes_fast_pass(head, None)
    for seed in range(3):
        instances, maps = ranked_image(head, seed)
        candidates = find_candidates(*instances)
        _, fast = FastPass(head, candidates, maps).mine(
            lambda losses: losses.argsort(descending=True)[:8], 8, None, None
        )
        plain = candidate_losses(head, candidates, maps)
        assert (candidates.labels >= 0).any()
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


def test_128_of_300_without_nms_are_the_hardest_and_no_warning_comes():
    model = Config.fromfile(ROOT / 'configs' / 'rfcn_r50_ohem_voc0712.py').model
    sampler = model.train_cfg.rcnn.sampler
    assert (sampler.num, sampler.nms_iou) == (128, None)
    assert model.train_cfg.rpn_proposal.max_per_img == 300
    head = build(small_model(**sampler)).roi_head
    instances, maps = ranked_image(head, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(51):  # the sampler counts the candidates of fifty images
            assigned, proposals, gt = instances
            result = head.bbox_sampler.sample(
                head.bbox_assigner.assign(proposals, gt), proposals, gt, feats=maps
            )
    mining = result.mining
    assert len(mining.losses) > 290
    hardest = np.argsort(-mining.losses.numpy(), kind='stable')[:128]
    assert sorted(mining.mined.tolist()) == sorted(hardest.tolist())


def test_the_report_of_the_hardest_images_asks_the_score_maps():
    """It hands the head a feature map of the backbone, not the maps."""
    model = small_model()
    model.data_preprocessor = dict(type='DetDataPreprocessor')
    detector = build(model).eval()
    sample = make_samples(0, NUM_CLASSES)[0]
    image = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), np.uint8)
    )
    gt = sample.gt_instances.bboxes
    scored = score_image(detector, dict(inputs=image, data_samples=sample), num=8)
    with torch.no_grad():
        feats = detector.backbone(image[None].float())
        head = detector.roi_head
        outputs = head._bbox_forward(head.score_maps(feats, {}), bbox2roi([gt]))
    torch.testing.assert_close(
        scored.scores[: len(gt)], outputs['cls_score'].softmax(dim=1)
    )


def test_in_half_precision_the_pooling_stays_in_float32():
    """Of the head alone: on a CPU MMDetection's RPN does not run in bfloat16."""
    head = build(small_model()).roi_head
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2, 32, 8, 8)).astype(np.float32))
    losses = []
    for enabled in (False, True):
        samples = make_samples(0, NUM_CLASSES)
        proposals = [sample.proposals for sample in samples]
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            loss = head.loss((x,), proposals, samples)
        sum(loss[key] for key in ('loss_cls', 'loss_bbox')).backward()
        losses.append(float(loss['loss_cls']))
    assert head.cls_conv.weight.grad.isfinite().all()
    assert losses[1] == pytest.approx(losses[0], rel=0.05)  # bfloat16 has 8 bits


def test_no_proposals_and_no_detections():
    detector = build(small_model()).eval()
    samples = make_samples(0, NUM_CLASSES)
    for sample in samples:
        sample.proposals = sample.proposals[:0]
    with torch.no_grad():
        found = detector(images(0), samples, 'predict')
    assert all(len(sample.pred_instances) == 0 for sample in found)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    'key, value, message',
    [
        (
            'bbox_head.reg_class_agnostic',
            False,
            'reg_class_agnostic=False asks for a box of each class.* set it to True',
        ),
        (
            'bbox_head.type',
            'BBoxHead',
            'bbox_head is a BBoxHead.* set its type to mmdet_ohem.RFCNBBoxHead',
        ),
        (
            'bbox_roi_extractor.featmap_strides',
            [8, 16],
            r'must hold one stride, that of the score maps, got \[8, 16\]',
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(key, value, message):
    model = small_model()
    part, name = key.split('.')
    model.roi_head[part][name] = value
    with pytest.raises((TypeError, ValueError), match=message):
        build(model)


def test_maps_that_do_not_fit_are_refused():
    head = build(small_model()).roi_head
    x = torch.zeros(1, 32, 4, 2)
    with pytest.raises(
        ValueError,
        match='4 x 2 cells for an input of 64 x 32 pixels, but a RoI has 3 x 3 bins; '
        'take larger images',
    ):
        head.score_maps((x,), dict(batch_input_shape=(64, 32)))
    x = torch.zeros(1, 32, 10, 16)
    with pytest.raises(
        ValueError,
        match='10 x 16 cells for an input of 320 x 500 pixels, which is no stride of '
        '16; set roi_head.bbox_roi_extractor.featmap_strides',
    ):
        head.score_maps((x,), dict(batch_input_shape=(320, 500)))
    head.score_maps((x,), dict(batch_input_shape=(155, 256)))  # as ResNet rounds
    with pytest.raises(
        ValueError, match='takes one feature map, got 2: .* out_indices'
    ):
        head.score_maps((x, x), {})


def test_testing_at_several_scales_is_refused():
    with pytest.raises(TypeError, match='RFCNRoIHead.*use DetTTAModel'):
        MultiScaleTTAModel(build(small_model()))


# ------------------------------------------------------------------------- the recipe


def test_rates_of_the_layers():
    """Twice the rate for the biases of the new layers; conv1, conv2 and the batch
    normalisation stay as they are (train_agnostic_ohem.prototxt)."""
    config = Config.fromfile(ROOT / 'configs' / 'rfcn_r50_ohem_voc0712.py')
    init_default_scope('mmdet')
    with torch.device('meta'):
        detector = MODELS.build(config.model)
    optimizer = build_optim_wrapper(detector, config.optim_wrapper).optimizer
    settings = {
        id(group['params'][0]): (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
    }
    trained = set()
    for name, parameter in detector.named_parameters():
        is_norm = '.bn' in name or 'downsample.1' in name
        is_frozen = is_norm or name.startswith(('backbone.conv1', 'backbone.layer1'))
        assert parameter.requires_grad != is_frozen, name
        if not is_frozen:
            rate = 0.002 if name.endswith('bias') else 0.001
            assert settings[id(parameter)] == pytest.approx((rate, 0.0005)), name
            trained.add('.'.join(name.split('.')[:2]))
    assert trained == {
        'backbone.layer2',
        'backbone.layer3',
        'roi_head.conv5',
        'roi_head.new_conv',
        'roi_head.cls_conv',
        'roi_head.reg_conv',
        'rpn_head.rpn_conv',
        'rpn_head.rpn_cls',
        'rpn_head.rpn_reg',
    }
    conv5 = detector.roi_head.conv5.layer4
    assert [block.conv2.dilation for block in conv5] == [(2, 2)] * 3
    assert all(block.conv1.stride == block.conv2.stride == (1, 1) for block in conv5)
    assert detector.roi_head.cls_conv.out_channels == 21 * 49
    assert detector.roi_head.reg_conv.out_channels == 4 * 49
