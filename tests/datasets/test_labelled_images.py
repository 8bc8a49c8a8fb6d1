"""Annotations as they are read here, against MMDetection's own data sets."""

import json
import math

import numpy as np
import pytest
from mmdet.datasets import CocoDataset, VOCDataset
from support import small_data

from mmdet_ohem.datasets import coco_content, read_annotations

CLASSES = ('cat', 'dog')
VOC_LIST = dict(trainval=['000005', '000007', '000009'])


def as_mmdet_reads(dataset) -> dict:
    """(x1, y1, x2, y2, class name, ignored) of every object, by image file."""
    found = {}
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        found[info['img_path']] = sorted(
            (
                *instance['bbox'],
                CLASSES[instance['bbox_label']],
                instance['ignore_flag'],
            )
            for instance in info['instances']
        )
    return found


def as_read_here(images) -> dict:
    return {
        str(image.file): sorted(
            (*box, name, int(ignored))
            for box, name, ignored in zip(
                image.boxes.tolist(), image.names, image.ignored, strict=True
            )
        )
        for image in images
    }


def test_voc_files_are_read_as_mmdetection_reads_them(tmp_path):
    small_data.write_voc(tmp_path, VOC_LIST, CLASSES)
    dataset = VOCDataset(
        data_root=f'{tmp_path}/',
        data_prefix=dict(sub_data_root=''),
        ann_file='ImageSets/Main/trainval.txt',
        metainfo=dict(classes=CLASSES),
    )
    images = read_annotations(tmp_path / 'Annotations', tmp_path / 'JPEGImages')
    assert as_read_here(images) == as_mmdet_reads(dataset)
    assert {image.size for image in images} == {(small_data.WIDTH, small_data.HEIGHT)}


def coco_dataset(ann_file, images):
    return CocoDataset(
        ann_file=str(ann_file),
        data_prefix=dict(img=f'{images}/'),
        metainfo=dict(classes=CLASSES),
    )


def test_coco_files_are_read_as_mmdetection_reads_them(tmp_path):
    small_data.write_coco(tmp_path, 'val2014', CLASSES, 'part/{}.jpg')
    ann_file = tmp_path / 'annotations' / 'instances_val2014.json'
    images = read_annotations(ann_file, tmp_path / 'val2014')
    dataset = coco_dataset(ann_file, tmp_path / 'val2014')
    assert as_read_here(images) == as_mmdet_reads(dataset)


def test_coco_files_of_xml_files_hold_the_same(tmp_path):
    small_data.write_voc(tmp_path, VOC_LIST, CLASSES)
    images = read_annotations(tmp_path / 'Annotations', tmp_path / 'JPEGImages')
    content = coco_content(images, CLASSES, tmp_path / 'JPEGImages')
    (tmp_path / 'all.json').write_text(json.dumps(content))
    dataset = coco_dataset(tmp_path / 'all.json', tmp_path / 'JPEGImages')
    assert as_read_here(images) == as_mmdet_reads(dataset)


def voc_xml(name: str = 'x', xmin: str = '1', difficult: str = '0') -> str:
    return (
        f'<annotation><object><name>{name}</name><difficult>{difficult}</difficult>'
        f'<bndbox><xmin>{xmin}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>'
        '</bndbox></object></annotation>'
    )


def coco_json(bbox=(0, 0, 9, 9), width: float = 80, name: str | None = 'x') -> str:
    image = dict(id=1, file_name='a.png', width=width, height=60)
    annotation = dict(id=1, image_id=1, category_id=1, bbox=list(bbox))
    categories = [dict(id=1, name=name)]
    return json.dumps(
        dict(images=[image], annotations=[annotation], categories=categories)
    )


@pytest.mark.parametrize(
    'name, content, words',
    [
        ('a.xml', '<annotation>', 'a.xml is no whole XML file'),
        ('a.xml', voc_xml().replace('xmin', 'x'), "a.xml: the xmin.*'x' is 'None'"),
        ('a.xml', voc_xml(xmin='nan'), "the xmin of an object of class 'x' is 'nan'"),
        ('a.xml', voc_xml(xmin='1e300'), "is '1e300' instead of a number of px"),
        ('a.xml', voc_xml(name=''), 'a.xml has an object without a name'),
        ('a.xml', voc_xml(difficult='no'), "a.xml: 'difficult' .* is 'no' instead"),
        ('a.json', '[]', 'holds a list'),
        ('a.json', '{', 'is no JSON file'),
        ('a.json', '[' * 5000, 'is no JSON file'),
        ('a.json', '{"images": []}', "no COCO annotation file.*'categories'"),
        ('a.json', coco_json(bbox=[0, 0, 9, math.nan]), r'a bbox is \[0, 0, 9, nan\]'),
        ('a.json', coco_json(bbox=[0, 0, 1e9, 9]), 'instead of four numbers of px'),
        ('a.json', coco_json(width=0), r'the size of image 1 is \(0, 60\) px'),
        ('a.json', coco_json(width=math.inf), 'no COCO annotation file'),
        ('a.json', coco_json(name=None), 'the category of an object has no name'),
    ],
)
def test_a_broken_file_is_named(name, content, words, tmp_path):
    small_data.write_image(tmp_path / 'a.png', np.random.default_rng(0))
    (tmp_path / name).write_text(content)
    path = tmp_path / name if name.endswith('json') else tmp_path
    with pytest.raises(ValueError, match=words):
        read_annotations(path, tmp_path)


def test_two_images_of_one_name_are_refused(tmp_path):
    content = small_data.write_coco(tmp_path, 'val2014', CLASSES, '{}/same.jpg')
    assert len(content['images']) == 2
    with pytest.raises(ValueError, match='same.jpg have the same name'):
        read_annotations(
            tmp_path / 'annotations' / 'instances_val2014.json', tmp_path / 'val2014'
        )
