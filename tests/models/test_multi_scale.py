import re

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from support.detection_reference import (
    ROI_POOL,
    assert_same_detections,
    batch,
    detect,
    draw_until_decided,
    head_of,
    random_seed,
    small_detector,
)
from support.reference import random_boxes
from support.tools import ROOT, run_tool_here, small_config

from mmdet_ohem.models.multi_scale import (
    MultiScaleTTAModel,
    PyramidRoIExtractor,
    choose_scales,
)

SCALES = [(400, 90), (400, 130), (400, 200)]
AREA = 60.0**2


def multi_scale_test(detector, data: dict, roi_area: float = AREA) -> list:
    with torch.no_grad():
        samples = MultiScaleTTAModel(detector, roi_area=roi_area).test_step(data)
    return [sample.pred_instances for sample in samples]


def test_choice_of_scales_is_that_of_plain_numpy():
    rng = np.random.default_rng(random_seed())
    areas = rng.uniform(1, 500, 300) ** 2
    ratios = rng.uniform(0.5, 3, (300, 5)) ** 2
    chosen = choose_scales(torch.tensor(areas), torch.tensor(ratios), 224**2)
    for i in range(300):
        distances = [abs(areas[i] * ratio - 224**2) for ratio in ratios[i]]
        assert chosen[i] == distances.index(min(distances))


def test_the_first_of_equally_close_scales():
    # 100, 400 and 900 px: 100 and 900 are equally far from 500
    ratios = torch.tensor([[1.0, 9.0, 1.0], [4.0, 9.0, 4.0]])
    assert choose_scales(torch.tensor([100.0, 100]), ratios, 500.0).tolist() == [0, 0]


@pytest.mark.parametrize('config', [{}, dict(bbox_roi_extractor=ROI_POOL)])
def test_every_roi_is_pooled_from_its_own_scale(config):
    seed = random_seed()
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    inner = small_detector(seed, **config).roi_head.bbox_roi_extractor
    sizes = [(12, 16), (18, 24), (36, 48)]  # cells of 8 pixels, of two images
    pyramid = [(torch.rand(2, 64, *size),) for size in sizes]
    factors = np.float32([[[1, 1], [1.5, 1.5], [3, 3]], [[1, 1], [1.4, 1.5], [3, 2.9]]])
    boxes = random_boxes(rng, 30, 128, 96)
    images = rng.integers(0, 2, 30)
    extractor = PyramidRoIExtractor(inner, AREA)
    extractor.factors = torch.from_numpy(factors)
    rois = np.column_stack([images, boxes]).astype(np.float32)
    pooled = extractor(pyramid, torch.from_numpy(rois))
    seen = set()
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        own = factors[images[i]]
        distances = [abs((x2 - x1) * fx * (y2 - y1) * fy - AREA) for fx, fy in own]
        scale = int(np.argmin(distances))
        fx, fy = own[scale]
        roi = np.float32([[images[i], x1 * fx, y1 * fy, x2 * fx, y2 * fy]])
        expected = inner(pyramid[scale], torch.from_numpy(roi))
        torch.testing.assert_close(pooled[i : i + 1], expected)
        seen.add(scale)
    assert len(seen) > 1


@pytest.mark.parametrize('rerun_score_thr', [None, 0.3])
@draw_until_decided
def test_detections_are_those_of_plain_numpy(tmp_path, rerun_score_thr):
    seed = random_seed()
    head = {}
    if rerun_score_thr is not None:
        head = dict(
            type='mmdet_ohem.IterativeBoxRoIHead', rerun_score_thr=rerun_score_thr
        )
    detector = small_detector(seed, **head)
    data, proposals = batch(tmp_path, seed, SCALES)
    expected = [
        detect(
            head_of(detector, data, image, AREA),
            proposals[image],
            rerun_score_thr=rerun_score_thr,
        )
        for image in range(2)
    ]
    found = multi_scale_test(detector, data)
    for image in range(2):
        assert_same_detections(found[image], expected[image])


@pytest.mark.parametrize('head', [{}, dict(type='mmdet_ohem.IterativeBoxRoIHead')])
@pytest.mark.parametrize('extractor', [{}, dict(bbox_roi_extractor=ROI_POOL)])
def test_one_scale_is_the_plain_test_to_the_last_bit(tmp_path, extractor, head):
    seed = random_seed()
    detector = small_detector(seed, **extractor, **head)
    data, _ = batch(tmp_path, seed, SCALES[:1])
    with torch.no_grad():
        plain = detector.test_step({key: value[0] for key, value in data.items()})
    data, _ = batch(tmp_path, seed, SCALES[:1])
    for one, other in zip(plain, multi_scale_test(detector, data), strict=True):
        assert len(other) > 3
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(one.pred_instances[key], other[key]), key


def test_scales_that_make_the_same_image_are_run_once(tmp_path, monkeypatch):
    seed = random_seed()
    detector = small_detector(seed)
    runs = []
    extract_feat = detector.extract_feat
    monkeypatch.setattr(
        detector, 'extract_feat', lambda x: runs.append(x.shape) or extract_feat(x)
    )
    # The longer sides reach 180 before the shorter ones reach 400.
    data, _ = batch(tmp_path, seed, [(400, 90), (180, 400), (180, 500)])
    multi_scale_test(detector, data)
    assert len(runs) == 2


def test_images_without_proposals_and_without_detections(tmp_path):
    seed = random_seed()
    data, _ = batch(tmp_path, seed, SCALES)
    for samples in data['data_samples']:
        samples[0].proposals = samples[0].proposals[:0]
    first, second = multi_scale_test(small_detector(seed), data)
    assert first.bboxes.shape == (0, 4) and len(second) > 0

    data, _ = batch(tmp_path, seed, SCALES)
    detector = small_detector(seed)
    detector.roi_head.test_cfg.score_thr = 1.0
    assert [len(found) for found in multi_scale_test(detector, data)] == [0, 0]


def test_views_that_are_more_than_resized_are_refused(tmp_path):
    data, _ = batch(tmp_path, 0, SCALES)
    bboxes = data['data_samples'][2][1].proposals.bboxes
    bboxes[:, [0, 2]] = 300 - bboxes[:, [2, 0]]  # flipped
    with pytest.raises(ValueError, match='1.jpg is more than the image resized'):
        multi_scale_test(small_detector(0), data)


def test_proposals_are_needed(tmp_path):
    data, _ = batch(tmp_path, 0, SCALES)
    del data['data_samples'][1][0].proposals
    with pytest.raises(ValueError, match='0.jpg has no proposals'):
        multi_scale_test(small_detector(0), data)


def test_other_detectors_are_refused():
    cascade = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'
    model = Config.fromstring(f"_base_ = '{cascade}'", '.py').model
    model.backbone.init_cfg = None
    with torch.device('meta'):
        detector = MODELS.build(model)
    with pytest.raises(TypeError, match='CascadeRCNN with CascadeRoIHead'):
        MultiScaleTTAModel(detector)


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('fast_rcnn_*_ms_*.py')))
def test_every_config_has_the_scales_and_nothing_else_new(path):
    config = Config.fromfile(path)
    plain = Config.fromfile(path.with_name(path.name.replace('_ms_', '_')))
    divisor = 2 if '_small_' in path.name else 1
    shorter = [480, 576, 688, 864, 900]  # the paper's
    scales = [(1000 // divisor, side // divisor) for side in shorter]

    dataset = plain.train_dataloader.dataset
    for part in dataset.get('datasets', [dataset]):
        step = part.pipeline[2]
        assert step == dict(type='Resize', scale=step.scale, keep_ratio=True)
        step.pop('scale')
        step.update(type='RandomChoiceResize', scales=scales)
    assert config.train_dataloader == plain.train_dataloader
    assert config.model == plain.model

    views = plain.tta_pipeline[1].transforms
    views[0] = [dict(type='Resize', scale=s, keep_ratio=True) for s in scales]
    views[1] = [dict(type='RandomFlip', prob=0.0)]
    assert config.tta_pipeline == plain.tta_pipeline
    assert config.tta_model == dict(
        type='mmdet_ohem.MultiScaleTTAModel', roi_area=(224 // divisor) ** 2
    )
    assert config.test_dataloader == plain.test_dataloader


@pytest.mark.slow
def test_the_eight_rows_of_the_table_run(lookalikes, tmp_path, capfd):
    options = [
        f'{loop}_dataloader.dataset.metainfo.classes=(washer,nut,gear)'
        for loop in ('train', 'val', 'test')
    ]
    options += [
        'train_dataloader.dataset.ann_file=ImageSets/Main/train.txt',
        'test_evaluator.iou_thrs=[0.5,0.7]',
        'train_cfg.max_iters=2',
        'test_dataloader.dataset.indices=2',  # of four images
    ]
    multi_scale = small_config(
        tmp_path / 'ms.py', lookalikes, 'fast_rcnn_small_ohem_ms_bccd.py'
    )
    plain = small_config(
        tmp_path / 'plain.py', lookalikes, 'fast_rcnn_small_ohem_bccd.py'
    )
    iterative = 'model.roi_head.type=mmdet_ohem.IterativeBoxRoIHead'
    results = set()
    for config in (plain, multi_scale):
        work_dir = tmp_path / config.stem
        train = ['tools/train.py', config, '--work-dir', work_dir]
        run_tool_here(*train, '--cfg-options', *options)
        test = ['tools/test.py', multi_scale, work_dir / 'iter_2.pth']
        for tta in ([], ['--tta']):
            for head in ([], [iterative]):
                out = tmp_path / f'{len(results)}.pkl'
                test_to = [*test, *tta, '--work-dir', tmp_path / 'test', '--out', out]
                run_tool_here(*test_to, '--cfg-options', *options, *head)
                said = capfd.readouterr().out
                assert re.search('pascal_voc/AP50.*pascal_voc/AP70', said), said
                results.add(out.read_bytes())
    assert len(results) == 8  # every row has detections of its own
