"""VOC, COCO and their proposals in miniature, laid out as the real ones."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np

from mmdet_ohem.proposals.store import write_store

WIDTH, HEIGHT = 120, 90
VOC07 = dict(trainval=['000005', '000007', '000009'], test=['000001', '000002'])
VOC12 = dict(trainval=['2008_000002', '2008_000003'], test=['2008_000001', '2008_4'])
COCO_IDS = dict(train2014=[9, 25, 30], val2014=[42, 73], test2015=[1, 14])


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) int, x1, y1, x2, y2 from 0, sides of 10 to 60 px."""
    corners = rng.integers((0, 0), (WIDTH - 60, HEIGHT - 60), (count, 2))
    return np.hstack([corners, corners + rng.integers(10, 60, (count, 2))])


def write_image(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8))


def write_xml(path: Path, objects: list[tuple]) -> None:
    """Objects are (class name, box from 0, is it difficult); the file counts from 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>'
        + ''.join(
            f'<object><name>{escape(name)}</name><difficult>{int(difficult)}'
            '</difficult><bndbox>'
            + ''.join(
                f'<{side}>{value + 1}</{side}>'
                for side, value in zip(
                    ('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True
                )
            )
            + '</bndbox></object>'
            for name, box, difficult in objects
        )
        + '</annotation>'
    )


def write_voc(root: Path, lists: dict[str, list[str]], classes, annotated=None) -> None:
    """A folder in VOC layout; lists outside `annotated` get no XML files."""
    rng = np.random.default_rng(0)
    (root / 'ImageSets' / 'Main').mkdir(parents=True)
    for image_list, img_ids in lists.items():
        path = root / 'ImageSets' / 'Main' / f'{image_list}.txt'
        path.write_text(''.join(f'{img_id}\n' for img_id in img_ids))
        for img_id in img_ids:
            write_image(root / 'JPEGImages' / f'{img_id}.jpg', rng)
            if annotated is None or image_list in annotated:
                names = [str(name) for name in rng.choice(classes, 3)]
                boxes = draw_boxes(rng, 3)
                objects = zip(names, boxes, (False, False, True), strict=True)
                write_xml(root / 'Annotations' / f'{img_id}.xml', list(objects))


def write_coco(root: Path, split: str, classes, names: str) -> dict:
    """Images and instances_SPLIT.json; returns the annotations.

    `names` makes the file name of an id. As in COCO category ids have gaps, and there
    is a crowd.
    """
    rng = np.random.default_rng(0)
    ids = COCO_IDS[split.replace('2017', '2014')]
    categories = [dict(id=2 * i + 1, name=name) for i, name in enumerate(classes)]
    images, annotations = [], []
    for img_id in ids:
        file_name = names.format(img_id)
        write_image(root / split / file_name, rng)
        images.append(dict(id=img_id, file_name=file_name, width=WIDTH, height=HEIGHT))
        for i, (x1, y1, x2, y2) in enumerate(draw_boxes(rng, 3).tolist()):
            annotation = dict(
                id=len(annotations) + 1,
                image_id=img_id,
                category_id=int(rng.choice(categories)['id']),
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1),
                iscrowd=int(i == 2),
                segmentation=[[x1, y1, x2, y1, x2, y2, x1, y2]],
            )
            if annotation['iscrowd']:
                annotation['segmentation'] = dict(
                    counts=[WIDTH * HEIGHT], size=[HEIGHT, WIDTH]
                )
            annotations.append(annotation)
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'annotations').mkdir(exist_ok=True)
    path = root / 'annotations' / f'instances_{split}.json'
    path.write_text(json.dumps(content))
    return content


def write_proposals(path: Path, img_ids: list[str], count: int = 30) -> None:
    rng = np.random.default_rng(0)
    records = [(img_id, draw_boxes(rng, count), (WIDTH, HEIGHT)) for img_id in img_ids]
    write_store(path, records, source='at random')


def write_everything(
    root: Path, voc_classes, coco_classes, num_proposals: int = 30
) -> None:
    """root/data, with all that the configs look for there."""
    devkit, coco = root / 'data' / 'VOCdevkit', root / 'data' / 'coco'
    write_voc(devkit / 'VOC2007', VOC07, voc_classes)
    write_voc(devkit / 'VOC2012', VOC12, voc_classes, annotated=['trainval'])
    for year, lists in (('2007', VOC07), ('2012', VOC12)):
        for split, img_ids in lists.items():
            store = devkit / 'selective_search' / f'voc_{year}_{split}'
            write_proposals(store, img_ids, num_proposals)

    for split in COCO_IDS:
        names = f'COCO_{split}_{{:012}}.jpg'
        content = write_coco(coco, split, coco_classes, names)
        stems = [Path(image['file_name']).stem for image in content['images']]
        write_proposals(coco / 'mcg' / split, stems, num_proposals)
    # The lists of test images come without annotations; `content` is test2015's.
    del content['annotations']
    (coco / 'annotations' / 'image_info_test-dev2015.json').write_text(
        json.dumps(content)
    )
    for split in ('train2017', 'val2017'):  # of MMDetection's own configs
        write_coco(coco, split, coco_classes, '{:012}.jpg')

    for name, classes, train in (
        ('bccd', ('RBC', 'WBC', 'Platelets'), 'trainval'),
        ('lookalikes', ('washer', 'nut', 'gear'), 'train'),
    ):
        lists = {train: VOC07['trainval'], 'test': VOC07['test']}
        write_voc(root / 'data' / name, lists, classes)
        img_ids = sum(lists.values(), [])
        write_proposals(root / 'data' / name / 'proposals', img_ids, num_proposals)
