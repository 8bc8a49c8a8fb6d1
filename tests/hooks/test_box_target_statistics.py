"""The statistics of box targets against Fast R-CNN's formula, one RoI at a time."""

from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from support import small_data
from support.detection_reference import random_seed
from support.reference import iou
from support.tools import ROOT

from mmdet_ohem.hooks.box_target_statistics import box_target_statistics
from mmdet_ohem.proposals import write_store

CLASSES = ('cat', 'dog', 'person', 'unseen')
LISTS = dict(trainval=['000005', '000007', '000009'], test=['000001', '000002'])
STDS = np.array([0.1, 0.1, 0.2, 0.2])  # target_stds of the config


@pytest.fixture
def voc(tmp_path):
    """A folder in VOC layout, and the boxes of its proposal stores by image."""
    small_data.write_voc(tmp_path, LISTS, CLASSES[:3])
    small_data.write_xml(tmp_path / 'Annotations' / '000009.xml', [])  # empty
    rng = np.random.default_rng(random_seed())
    proposals = {}
    for image_list, img_ids in LISTS.items():
        for img_id in img_ids:
            # Near all objects, the difficult ones too, and far from them.
            boxes = [box for _, box, _ in objects(tmp_path, img_id)]
            near = np.repeat(np.reshape(boxes, (-1, 4)), 20, axis=0)
            near = near + rng.normal(0, 4, near.shape)
            boxes = np.vstack([near, small_data.draw_boxes(rng, 20)])
            boxes = boxes.clip(0, np.tile([small_data.WIDTH, small_data.HEIGHT], 2))
            proposals[img_id] = boxes.astype(np.float32)
        records = [
            (img_id, proposals[img_id], (small_data.WIDTH, small_data.HEIGHT))
            for img_id in img_ids
        ]
        write_store(tmp_path / image_list, records, source='near the objects')
    return tmp_path, proposals


def objects(root, img_id: str) -> list[tuple]:
    """(class, box from 0, is difficult)."""
    xml = ElementTree.parse(root / 'Annotations' / f'{img_id}.xml')
    return [
        (
            CLASSES.index(found.findtext('name')),
            np.array([float(side.text) - 1 for side in found.find('bndbox')]),
            found.findtext('difficult') == '1',
        )
        for found in xml.iterfind('object')
    ]


def target(box, gt) -> np.ndarray:
    width, height = box[2] - box[0], box[3] - box[1]
    gt_width, gt_height = gt[2] - gt[0], gt[3] - gt[1]
    dx = (gt[0] + gt_width / 2 - box[0] - width / 2) / width
    dy = (gt[1] + gt_height / 2 - box[1] - height / 2) / height
    return np.array([dx, dy, np.log(gt_width / width), np.log(gt_height / height)])


def plain_statistics(root, proposals: dict, img_ids: list[str]):
    targets = [[] for _ in CLASSES]
    for img_id in img_ids:
        gts = [
            (label, box) for label, box, is_hard in objects(root, img_id) if not is_hard
        ]
        for box in [*(gt for _, gt in gts), *proposals[img_id].astype(float)]:
            ious = [iou(box, gt) for _, gt in gts]
            if max(ious, default=0) >= 0.5:
                label, gt = gts[int(np.argmax(ious))]
                one = target(box, gt) / STDS
                targets[label] += [one, one * [-1, 1, 1, 1]]  # and the mirror image
    assert sum(len(of_class) for of_class in targets) > 40 and not targets[3]
    means = [np.mean(of_class or [np.zeros(4)], axis=0) for of_class in targets]
    stds = [np.std(of_class or [np.zeros(4)], axis=0) for of_class in targets]
    return np.array(means), np.where(np.array(stds) < 1e-6, 1, stds)


def dataset_config(root, image_list: str) -> dict:
    return dict(
        type='VOCDataset',
        data_root=f'{root}/',
        data_prefix=dict(sub_data_root=''),
        ann_file=f'ImageSets/Main/{image_list}.txt',
        metainfo=dict(classes=CLASSES),
        pipeline=[
            dict(type='mmdet_ohem.LoadStoredProposals', store=str(root / image_list))
        ],
    )


def build_roi_head():
    init_default_scope('mmdet')
    model = Config.fromfile(
        ROOT / 'configs' / 'fast_rcnn_vgg16_ohem_release_voc07.py'
    ).model
    model.roi_head.bbox_head.update(fc_out_channels=(8, 8), num_classes=len(CLASSES))
    return MODELS.build(ConfigDict(model.roi_head, train_cfg=model.train_cfg.rcnn))


@pytest.mark.parametrize('lists', [['trainval'], ['trainval', 'test']])
def test_the_statistics_are_fast_rcnns(voc, lists):
    root, proposals = voc
    roi_head = build_roi_head()
    config = dataset_config(root, lists[0])
    if len(lists) > 1:
        config = dict(
            type='ConcatDataset', datasets=[dataset_config(root, one) for one in lists]
        )
    dataset = DATASETS.build(dict(type='RepeatDataset', dataset=config, times=2))
    means, stds = box_target_statistics(dataset, roi_head)
    img_ids = [img_id for one in lists for img_id in LISTS[one]]
    expected_means, expected_stds = plain_statistics(root, proposals, img_ids)
    np.testing.assert_allclose(means, expected_means, atol=1e-4)
    np.testing.assert_allclose(stds, expected_stds, atol=1e-4)
    # Fast R-CNN's sum over the images has no order to draw.
    again = box_target_statistics(dataset, roi_head)
    assert torch.equal(again[0], means) and torch.equal(again[1], stds)


def test_without_stored_proposals_the_data_set_is_refused(voc):
    config = dict(dataset_config(voc[0], 'test'), pipeline=[])
    with pytest.raises(ValueError, match='reads stored proposals'):
        box_target_statistics(DATASETS.build(config), build_roi_head())
