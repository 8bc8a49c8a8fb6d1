"""What is ground truth in training and in evaluation: difficult objects, crowds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, METRICS, TASK_UTILS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support import small_data
from support.tools import ROOT

from mmdet_ohem.proposals.store import write_store

EASY, DIFFICULT = (10, 10, 49, 49), (60, 20, 109, 79)
BOXES = torch.tensor([EASY, DIFFICULT, (62, 22, 109, 79), (0, 60, 20, 85)]).float()


@pytest.fixture
def voc(tmp_path, monkeypatch) -> Path:
    """VOC07 with one image: a dog, and a difficult dog."""
    init_default_scope('mmdet')
    devkit = tmp_path / 'data' / 'VOCdevkit'
    ids = ['000001']
    small_data.write_voc(devkit / 'VOC2007', dict(trainval=ids, test=ids), ['dog'])
    objects = [('dog', EASY, False), ('dog', DIFFICULT, True)]
    small_data.write_xml(devkit / 'VOC2007' / 'Annotations' / '000001.xml', objects)
    records = [('000001', BOXES.numpy(), (small_data.WIDTH, small_data.HEIGHT))]
    for split in ('trainval', 'test'):
        store = devkit / 'selective_search' / f'voc_2007_{split}'
        write_store(store, records, source='by hand')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(name: str) -> Config:
    config = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    for loader in (config.train_dataloader, config.test_dataloader):
        for step in loader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (small_data.WIDTH, small_data.HEIGHT)
            if step.type == 'RandomFlip':
                step.prob = 0.0
    return config


def assigned_labels(config: Config, sample, boxes=BOXES) -> list[int]:
    """The label that the config's assigner gives each box: -1 is background."""
    assigner = TASK_UTILS.build(config.model.train_cfg.rcnn.assigner)
    assigned = assigner.assign(
        InstanceData(priors=boxes), sample.gt_instances, sample.ignored_instances
    )
    return [
        {0: 'background', -1: 'ignored'}.get(int(index), int(label))
        for index, label in zip(assigned.gt_inds, assigned.labels, strict=True)
    ]


def test_difficult_objects_are_background_in_training(voc):
    config = load('fast_rcnn_vgg16_ohem_voc07')
    sample = DATASETS.build(config.train_dataloader.dataset)[0]['data_samples']
    assert sample.gt_instances.bboxes.tensor.tolist() == [list(EASY)]
    assert sample.proposals.bboxes.tolist() == BOXES.tolist()
    dog = DATASETS.get('VOCDataset').METAINFO['classes'].index('dog')
    background = ['background'] * 3  # the difficult dog, nearly it, and nothing
    assert assigned_labels(config, sample) == [dog, *background]


@pytest.mark.parametrize(
    'detected, ap', [((), 1), ((DIFFICULT,), 1), (((0, 60, 20, 85),), 0.5)]
)
def test_difficult_objects_are_ignored_in_evaluation(voc, detected, ap):
    """To find one is neither right nor wrong, to miss it is no miss. A surer detection
    elsewhere leaves a precision of 1/2 at every recall."""
    config = load('fast_rcnn_vgg16_ohem_voc07')
    dataset = DATASETS.build(config.test_dataloader.dataset)
    dog = dataset.metainfo['classes'].index('dog')
    sample = dataset[0]['data_samples'].to_dict()
    for part in (sample['gt_instances'], sample['ignored_instances']):
        part['bboxes'] = part['bboxes'].tensor
    sample['pred_instances'] = dict(
        bboxes=torch.tensor([EASY, *detected]).float(),
        labels=torch.tensor([dog] * (1 + len(detected))),
        scores=torch.tensor([0.5, 0.9][: 1 + len(detected)]),
    )
    metric = METRICS.build(config.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    metric.process({}, [sample])
    assert metric.evaluate(size=1)['pascal_voc/mAP'] == pytest.approx(ap)


@pytest.fixture
def coco(tmp_path, monkeypatch) -> dict:
    """COCO in miniature; returns the annotations of train2014, two boxes and a crowd
    an image. test2015's are in data/coco/annotations/instances_test2015.json."""
    init_default_scope('mmdet')
    classes = CocoDataset.METAINFO['classes']
    small_data.write_everything(tmp_path, ['dog'], classes)
    monkeypatch.chdir(tmp_path)
    path = 'data/coco/annotations/instances_train2014.json'
    return COCO(path).dataset


def test_rois_in_crowds_take_no_part(coco):
    config = load('fast_rcnn_vgg16_ohem_coco')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    sample = dataset[0]['data_samples']
    first = [a for a in coco['annotations'] if a['image_id'] == sample.img_id]
    assert [a['iscrowd'] for a in first] == [0, 0, 1]
    assert len(sample.gt_instances) == 2 and len(sample.ignored_instances) == 1
    x, y, w, h = first[2]['bbox']
    inside = torch.tensor([[x, y, x + w / 3, y + h / 3]])
    assert assigned_labels(config, sample, inside) == ['ignored']
    far = torch.tensor([[x + 2 * w, y, x + 3 * w, y + h]])
    assert assigned_labels(config, sample, far) != ['ignored']


def test_pycocotools_scores_the_json_of_testdev(coco):
    """Perfect detections reach an AP of 1 against what the server alone has."""
    config = load('fast_rcnn_vgg16_ohem_coco_testdev')
    dataset = DATASETS.build(config.test_dataloader.dataset)
    metric = METRICS.build(config.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    server = COCO('data/coco/annotations/instances_test2015.json')
    labels = {category: label for label, category in enumerate(server.getCatIds())}
    for item in dataset:
        sample = item['data_samples'].to_dict()
        objects = server.imgToAnns[sample['img_id']]
        boxes = np.array([a['bbox'] for a in objects], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        sample['pred_instances'] = dict(
            bboxes=torch.from_numpy(boxes),
            labels=torch.tensor([labels[a['category_id']] for a in objects]),
            scores=torch.linspace(0.9, 0.5, len(objects)),
        )
        metric.process({}, [sample])
    metric.evaluate(size=len(dataset))

    written = Path(f'{config.test_evaluator.outfile_prefix}.bbox.json')
    evaluation = COCOeval(server, server.loadRes(str(written)), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
