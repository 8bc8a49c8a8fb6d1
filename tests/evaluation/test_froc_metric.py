import json
import logging

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.fileio import load
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from support import small_data
from support.plain_froc import plain_curve, plain_sensitivity
from support.tools import run_tool_here, small_config

from mmdet_ohem.evaluation import BackgroundMetric

CLASSES = ('cat', 'dog')
PERSON = (0.0, 0.0, 10.0, 10.0)
AWAY = (50.0, 50.0, 60.0, 60.0)


def instances(labels=(), boxes=(), **scores) -> InstanceData:
    return InstanceData(
        labels=torch.tensor(labels, dtype=torch.long),
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        **{key: torch.tensor(value) for key, value in scores.items()},
    )


@pytest.fixture
def said():
    """What MMEngine's logger is given; it hands nothing on to Python's own."""
    lines = []

    class Kept(logging.Handler):
        def emit(self, record) -> None:
            lines.append(record.getMessage())

    handler = Kept()
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def sample(found=((), (), ()), objects=((), ()), ignored=((), ())) -> DetDataSample:
    """Detections (labels, boxes, scores) and annotations (labels, boxes)."""
    return DetDataSample(
        pred_instances=instances(*found[:2], scores=found[2]),
        gt_instances=instances(*objects),
        ignored_instances=instances(*ignored),
    )


def evaluate(samples, classes=CLASSES, **options) -> dict:
    """As a test loop does, in a list of metrics."""
    metric = METRICS.build(dict(type='mmdet_ohem.FROCMetric', **options))
    evaluator = Evaluator([metric])
    evaluator.dataset_meta = dict(classes=classes)
    for one in samples:
        evaluator.process([one])
    return evaluator.evaluate(len(samples))


# A cat that is found twice, and once more where there is none. A dog that
# is found late. Two images without objects, of which one has a cat's alarm. A difficult
# dog that is found.
SAMPLES = [
    sample(([0, 0, 0], [PERSON, PERSON, AWAY], [0.9, 0.8, 0.7]), ([0], [PERSON])),
    sample(([1], [PERSON], [0.25]), ([1], [PERSON])),
    sample(),
    sample(([0, 1], [AWAY, AWAY], [0.6, 0.4])),
    sample(([1], [AWAY], [0.95]), ([], []), ([1], [AWAY])),
]


def test_figures_worked_out_by_hand(tmp_path):
    figures = evaluate(SAMPLES, out_dir=str(tmp_path))
    # Of five images: a hit at 0.9, false at 0.8, 0.7, 0.6 and 0.4, a hit at 0.25.
    assert figures == pytest.approx(
        {
            'froc/sensitivity@0.125': 0.5,
            'froc/sensitivity@0.25': 0.5,
            'froc/sensitivity@0.5': 0.5,
            'froc/sensitivity@1': 1,
            'froc/sensitivity@2': 1,
            'froc/sensitivity@4': 1,
            'froc/sensitivity@8': 1,
            'froc/mean_sensitivity': 5.5 / 7,
            'froc/fp_per_image@recall0.8': 0.8,
            'froc/score@recall0.8': 0.25,
            'froc/false_alarms@0.5': 0.5,
            'froc/highest_fp_per_image': 0.8,
        }
    )
    written = json.loads((tmp_path / 'froc.json').read_text())
    assert list(written) == ['all classes', 'cat', 'dog']
    assert written['all classes'] == {
        key.removeprefix('froc/'): value for key, value in figures.items()
    }
    cat, dog = written['cat'], written['dog']
    assert cat['sensitivity@0.125'] == 1 and cat['fp_per_image@recall0.8'] == 0
    assert cat['highest_fp_per_image'] == pytest.approx(0.6)
    assert cat['false_alarms@0.5'] == 0.25  # four images without a cat
    assert dog['sensitivity@0.125'] == 0 and dog['sensitivity@0.25'] == 1
    assert dog['false_alarms@0.5'] == 0  # three; the one with a difficult dog is none


def test_background_has_the_false_positives_alone(tmp_path, said):
    """Of the test set a cat is found at 0.9 and a dog at 0.25, and there are two images
    without objects: one with a cat's alarm and a dog's, one without any."""
    evaluator = Evaluator([dict(type='mmdet_ohem.FROCMetric', out_dir=str(tmp_path))])
    evaluator.dataset_meta = dict(classes=CLASSES)
    evaluator.process(SAMPLES)
    evaluator.evaluate(len(SAMPLES))
    background = Evaluator([BackgroundMetric(evaluator.metrics[0])])
    background.dataset_meta = dict(classes=CLASSES)
    background.process([sample(([0, 1], [AWAY, AWAY], [0.95, 0.1])), sample()])
    figures = background.evaluate(2)
    assert figures['background/sensitivity@0.125'] == 0
    assert figures['background/sensitivity@0.5'] == 1
    assert figures['background/fp_per_image@recall0.8'] == 0.5
    assert figures['background/score@recall0.8'] == 0.25
    assert figures['background/false_alarms@0.5'] == 0.5
    assert figures['background/highest_fp_per_image'] == 1
    of_dogs = json.loads((tmp_path / 'background.json').read_text())['dog']
    assert of_dogs['sensitivity@0.125'] == 1 and of_dogs['false_alarms@0.5'] == 0
    assert (tmp_path / 'background.png').exists()
    assert 'per image without objects, 2 images' in '\n'.join(said)


def test_duplicates_count_neither_way_if_asked():
    figures = evaluate(SAMPLES, ignore_duplicates=True)
    assert figures['froc/highest_fp_per_image'] == pytest.approx(0.6)
    assert evaluate(SAMPLES)['froc/highest_fp_per_image'] == pytest.approx(0.8)


def test_what_is_not_reached_is_said(tmp_path, said):
    samples = [
        sample(([0, 0], [PERSON, AWAY], [0.9, 0.05]), ([0], [PERSON])),
        sample(objects=([0], [PERSON])),
    ]
    figures = evaluate(samples, ('cat',), out_dir=str(tmp_path))
    said = '\n'.join(said)
    assert '| 0.500 | 0.500 | 0.500 | 0.500* | 0.500* | 0.500* |' in said
    assert (
        '* Not reached: it is the sensitivity of all detections, down to a score of '
        '0.05, and with more it could be higher. Over all classes there are 0.500 '
        'false positives per image.'
    ) in said
    assert 'Recall 0.8 is not reached: the detections find 0.500 of the' in said
    assert 'in empty images' in said and '0 of 0' in said
    assert 'cat' not in said  # one class is all classes
    for key in ('fp_per_image@recall0.8', 'score@recall0.8', 'false_alarms@0.5'):
        assert np.isnan(figures[f'froc/{key}'])
        written = json.loads((tmp_path / 'froc.json').read_text())
        assert written['all classes'][key] is None


def test_nothing_found_and_nothing_to_find(said):
    figures = evaluate([sample(objects=([0], [PERSON]))])
    assert figures['froc/mean_sensitivity'] == 0
    assert '* There are no detections.' in said
    figures = evaluate([sample(), sample(([0], [AWAY], [0.5]))])
    assert np.isnan(figures['froc/mean_sensitivity'])
    assert figures['froc/false_alarms@0.5'] == 0.5


def test_the_curves_are_drawn(tmp_path):
    evaluate(SAMPLES, out_dir=str(tmp_path))
    picture = cv2.imread(str(tmp_path / 'froc.png')).astype(int)
    # Black, and matplotlib's first two colours.
    for blue_green_red in ((0, 0, 0), (180, 119, 31), (14, 127, 255)):
        assert (np.abs(picture - blue_green_red).max(axis=2) < 30).sum() > 300
    many = [f'class {i}' for i in range(80)]
    evaluate(SAMPLES, many, out_dir=str(tmp_path))
    picture = cv2.imread(str(tmp_path / 'froc.png')).astype(int)
    assert (np.abs(picture - 204).max(axis=2) < 10).sum() > 300  # grey


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('annotated')
    small_data.write_voc(root / 'voc', dict(test=['1', '2', '3']), CLASSES)
    (root / 'coco').mkdir()
    small_data.write_coco(root / 'coco', 'val2014', CLASSES, '{}.jpg')
    return root


@pytest.mark.parametrize('name', ['VOCDataset', 'XMLDataset', 'CocoDataset'])
def test_annotations_of_voc_and_coco_are_read(name, folder):
    """Who finds every object at its place, and the difficult ones and crowds too, has
    neither misses nor false positives."""
    place = dict(ann_file='ImageSets/Main/test.txt', data_root=str(folder / 'voc'))
    prefix = dict(data_prefix=dict(sub_data_root=''))
    if name == 'CocoDataset':
        place = dict(ann_file='annotations/instances_val2014.json')
        place['data_root'] = str(folder / 'coco')
        prefix = dict(data_prefix=dict(img='val2014/'))
    dataset = DATASETS.build(
        dict(
            type=name,
            **place,
            **prefix,
            metainfo=dict(classes=CLASSES),
            test_mode=True,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(400, 300), keep_ratio=True),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PackDetInputs'),
            ],
        )
    )
    samples = []
    for data in dataset:
        one = data['data_samples']
        objects, ignored = one.gt_instances, one.ignored_instances
        assert len(objects) == 2 and len(ignored) == 1
        found = InstanceData.cat([objects, ignored])
        found.scores = torch.full((len(found),), 0.5)
        one.pred_instances = found
        samples.append(one)
    figures = evaluate(samples, dataset.metainfo['classes'])
    assert figures['froc/mean_sensitivity'] == 1
    assert figures['froc/highest_fp_per_image'] == 0


def test_an_image_without_annotations_is_said():
    one = sample()
    one.gt_instances = InstanceData()
    with pytest.raises(ValueError, match="^mmdet_ohem.FROCMetric got .*='LoadAnno"):
        evaluate([one])


def test_rotated_boxes_are_refused():
    one = sample()
    one.gt_instances.bboxes = torch.zeros(0, 5)
    with pytest.raises(ValueError, match='gt_instances have 5 numbers'):
        evaluate([one])


def test_a_test_run_gives_what_the_plain_computation_gives(lookalikes, tmp_path):
    """Of a network that has learnt nothing, which fires everywhere. The test images
    stand for background too, where every detection is false."""
    config = small_config(
        tmp_path / 'small.py',
        lookalikes,
        'fast_rcnn_small_ohem_lookalikes.py',
        'test_evaluator = [_base_.test_evaluator, '
        f"dict(type='mmdet_ohem.FROCMetric', out_dir={str(tmp_path)!r})]\n",
    )
    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    detector = MODELS.build(cfg.model)
    weights, detections = tmp_path / 'weights.pth', tmp_path / 'found.pkl'
    torch.save(dict(state_dict=detector.state_dict(), meta={}), weights)
    infos = list(DATASETS.build(cfg.test_dataloader.dataset | dict(pipeline=[])))
    background = tmp_path / 'background.txt'
    background.write_text(''.join(f'{info["img_path"]}\n' for info in infos))
    with pytest.warns(UserWarning, match='rcnn.score_thr is 0.05, which cuts'):
        run_tool_here(
            *('tools/test.py', config, weights, '--work-dir', tmp_path / 'work'),
            *('--out', detections, '--background', background),
            *('--background-proposals', lookalikes / 'proposals'),
        )
    (written,) = (tmp_path / 'work').glob('*/*.json')
    figures = json.loads(written.read_text())
    assert 'pascal_voc/mAP' in figures
    assert (tmp_path / 'froc.png').exists()

    found = {one['img_id']: one['pred_instances'] for one in load(detections)}
    images = []
    for info in infos:
        of_image = found[info['img_id']]
        parts = dict(
            boxes=of_image['bboxes'].double().tolist(),
            scores=of_image['scores'].tolist(),
            labels=of_image['labels'].tolist(),
        )
        for name, key, flag in (('object', 'objects', 0), ('ignored', 'ignored', 1)):
            kept = [one for one in info['instances'] if one['ignore_flag'] == flag]
            parts[f'{name}_labels'] = [one['bbox_label'] for one in kept]
            parts[key] = [one['bbox'] for one in kept]
        images.append(parts)
    points = plain_curve(images, None, spares_duplicates=False)
    for rate in (1 / 8, 1, 8):
        expected = plain_sensitivity(points, rate)
        assert figures[f'froc/sensitivity@{rate:g}'] == pytest.approx(expected)
    assert figures['froc/highest_fp_per_image'] == pytest.approx(points[-1][0])
    assert points[-1][0] > 8

    scores = [score for image in images for score in image['scores']]
    of_all = len(scores) / len(images)
    assert figures['background/highest_fp_per_image'] == pytest.approx(of_all)
    threshold = figures['froc/score@recall0.8']
    if np.isnan(threshold):
        assert np.isnan(figures['background/fp_per_image@recall0.8'])
    else:
        fired = sum(score >= threshold for score in scores) / len(images)
        assert figures['background/fp_per_image@recall0.8'] == pytest.approx(fired)
    alarms = sum(max(image['scores']) >= 0.5 for image in images) / len(images)
    assert figures['background/false_alarms@0.5'] == alarms


def test_proposals_of_the_background_are_asked_for(lookalikes, tmp_path):
    base = 'fast_rcnn_small_ohem_lookalikes.py'
    config = small_config(tmp_path / 'small.py', lookalikes, base)
    weights = tmp_path / 'weights.pth'
    torch.save(dict(state_dict={}, meta={}), weights)
    with pytest.raises(SystemExit, match='there are none of nowhere: make them with'):
        run_tool_here('tools/test.py', config, weights, '--background', 'nowhere')
