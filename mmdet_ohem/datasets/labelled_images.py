"""Ground truth of VOC XML files or of a COCO JSON file, in one form.

K: objects of one image.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmdet_ohem.datasets.annotations import (
    is_box,
    is_difficult,
    read_voc_annotation,
    voc_box,
)
from mmdet_ohem.datasets.images import find_image, image_size, list_images


@dataclass
class LabelledImage:
    """An image and its objects.

    Args:
        file: of the image.
        size: width and height in px.
        boxes: (K, 4) float64 as x1, y1, x2, y2 in px, MMDetection's convention.
        names: K class names.
        ignored: (K,) bool, VOC's difficult objects and COCO's crowds, which training
            and evaluation leave out.
    """

    file: Path
    size: tuple[int, int]
    boxes: np.ndarray
    names: list[str]
    ignored: np.ndarray

    @property
    def img_id(self) -> str:
        """What a proposal store calls the image."""
        return self.file.stem


def read_annotations(
    path: str | os.PathLike, images: str | os.PathLike
) -> list[LabelledImage]:
    """Read a folder of VOC's XML files, or a COCO file.

    Images of the folder that have no annotation are left out.

    Args:
        path: the folder, or the .json file.
        images: their image folder. VOC: an image has the name of its XML file. COCO:
            the file names are below it.

    Raises:
        FileNotFoundError: there is no such file or folder, or no such image.
        ValueError: a file is not of its kind, an image has no file or cannot be read,
            or two images have the same name in different folders.
    """
    path = Path(path)
    if path.is_dir():
        found = _read_voc(path, images)
    elif path.is_file():
        found = _read_coco(path, images)
    else:
        raise FileNotFoundError(
            f'There is no {path}: give the folder of the XML files, or the JSON file, '
            'of the annotations.'
        )
    by_id = {}
    for image in found:
        if image.img_id in by_id:
            raise ValueError(
                f'{by_id[image.img_id]} and {image.file} have the same name, by which '
                'a proposal store knows them: rename one.'
            )
        by_id[image.img_id] = image.file
    return found


def _read_voc(folder: Path, image_folder: str | os.PathLike) -> list[LabelledImage]:
    images = list_images(image_folder)
    paths = sorted(folder.glob('*.xml'))
    if not paths:
        raise ValueError(f'{folder} has no XML file in it: check its path.')
    return [
        read_voc_file(path, find_image(images, path.stem, str(image_folder)))
        for path in paths
    ]


def read_voc_file(path: Path, image: Path) -> LabelledImage:
    """One image of VOC's; its first pixel is 1 there, and 0 here.

    Raises:
        ValueError: as in `read_annotations`.
    """
    boxes, names, ignored = [], [], []
    for node in read_voc_annotation(path).iterfind('object'):
        name = node.findtext('name')
        if not name:
            raise ValueError(f'{path} has an object without a name: give it one.')
        names.append(name)
        boxes.append(voc_box(node, path))
        ignored.append(is_difficult(node, path))
    return LabelledImage(
        image,
        image_size(image),
        np.array(boxes, float).reshape(-1, 4),
        names,
        np.array(ignored, dtype=bool),
    )


def _read_coco(path: Path, image_folder: str | os.PathLike) -> list[LabelledImage]:
    content = read_coco_json(path)
    try:
        of_category = {c['id']: c['name'] for c in content['categories']}
        objects = {image['id']: [] for image in content['images']}
        for annotation in content['annotations']:
            objects[annotation['image_id']].append(annotation)
        found = []
        for image in content['images']:
            file = Path(image_folder, image['file_name'])
            if not file.is_file():
                raise FileNotFoundError(
                    f'The image {file} is missing, and {path} names it: check the '
                    'image folder, which its file names are below.'
                )
            found.append(_coco_image(file, image, objects[image['id']], of_category))
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} is no COCO annotation file of objects ({error!r}): check it.'
        ) from error
    return found


def _coco_image(
    file: Path, image: dict, annotations: list[dict], of_category: dict
) -> LabelledImage:
    size = (int(image['width']), int(image['height']))
    if min(size) <= 0:
        raise ValueError(f'the size of image {image["id"]} is {size} px')
    for annotation in annotations:
        if not is_box(annotation['bbox']):
            shown = str(annotation['bbox'])[:80]
            raise ValueError(f'a bbox is {shown} instead of four numbers of px')
    boxes = np.array([a['bbox'] for a in annotations], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    names = [of_category[a['category_id']] for a in annotations]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError('the category of an object has no name')
    ignored = [bool(a.get('iscrowd', 0)) for a in annotations]
    return LabelledImage(file, size, boxes, names, np.array(ignored, dtype=bool))


def read_coco_json(path: Path) -> dict:
    """What a COCO file holds; ValueError if it is no JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # the latter where nested deeply
        raise ValueError(f'{path} is no JSON file ({error}).') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} is no COCO annotation file: it holds a list.')
    return content


def coco_content(images: list[LabelledImage], classes: list[str], root: Path) -> dict:
    """What a COCO file says of images; difficult objects are crowds in it.

    Args:
        classes: their numbers are from 1.
        root: file names are below it.
    """
    numbers = {name: i for i, name in enumerate(classes, 1)}
    annotations = []
    for image_id, image in enumerate(images, 1):
        for box, name, ignored in zip(
            image.boxes.tolist(), image.names, image.ignored, strict=True
        ):
            x1, y1, x2, y2 = box
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=numbers[name],
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=int(ignored),
                )
            )
    return dict(
        images=[
            dict(
                id=image_id,
                file_name=os.path.relpath(image.file, root),
                width=image.size[0],
                height=image.size[1],
            )
            for image_id, image in enumerate(images, 1)
        ],
        annotations=annotations,
        categories=[dict(id=i, name=name) for name, i in numbers.items()],
    )
