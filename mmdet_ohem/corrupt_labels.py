"""A copy of a data set in VOC layout with some labels spoilt, to see who finds them."""

import json
import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps

from mmdet_ohem.hardest_images import BACKGROUND, Hard


def corrupt_labels(
    root: str,
    out: str,
    image_list: str = 'trainval',
    wrong: float = 0.05,
    removed: float = 0.0,
    seed: int = 0,
) -> list[dict]:
    """Give some objects another class of the data set, and leave some out.

    Difficult objects and boxes without area stay as they are: nothing is trained on
    them. Images and image lists are linked, not copied. The same seed gives the same
    annotations.

    Args:
        root: holds Annotations/, ImageSets/Main/ and JPEGImages/.
        out: a new folder of that layout; corrupted.json in it is what this returns.
        image_list: only objects of the images in ImageSets/Main/<image_list>.txt.
        wrong: fraction of those objects that get a class drawn from the others.
        removed: fraction of them that are left out.
        seed: of the choice.

    Returns:
        A dict per spoilt object: img_id, box (x1, y1, x2, y2 from 0 as in MMDetection),
        label, given (the wrong class, or None where the object was left out).

    Raises:
        FileNotFoundError: a list or an annotation is missing.
        FileExistsError: ``out`` is there already.
        ValueError: the fractions are out of range, or there is only one class.
    """
    if not (0 <= wrong and 0 <= removed and 0 < wrong + removed <= 1):
        raise ValueError(
            f'The fractions of wrong ({wrong}) and removed ({removed}) labels must lie '
            'in [0, 1] and their sum in (0, 1].'
        )
    root, out = Path(root), Path(out)
    if out.exists():
        raise FileExistsError(f'{out} exists: remove it, or choose another folder.')
    img_ids = _read_list(root / 'ImageSets' / 'Main' / f'{image_list}.txt')
    trees = {img_id: _parse(root, img_id) for img_id in img_ids}
    objects = [
        (img_id, node)
        for img_id, tree in trees.items()
        for node in tree.findall('object')
        if _is_trained_on(node)
    ]
    classes = sorted({node.findtext('name') for _, node in objects})
    if wrong > 0 and len(classes) < 2:
        raise ValueError(
            f'The objects of {image_list}.txt are all of one class, {classes}: there '
            'is no wrong one to give.'
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(objects))
    num_wrong, num_removed = (round(part * len(objects)) for part in (wrong, removed))
    spoilt = []
    for i in sorted(order[: num_wrong + num_removed].tolist()):
        img_id, node = objects[i]
        label, given = node.findtext('name'), None
        if i in order[:num_wrong]:
            given = str(rng.choice([name for name in classes if name != label]))
            node.find('name').text = given
        else:
            trees[img_id].getroot().remove(node)
        spoilt.append(dict(img_id=img_id, box=_box(node), label=label, given=given))
    _write(root, out, trees, spoilt)
    return spoilt


def _read_list(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except FileNotFoundError:
        raise FileNotFoundError(
            f'{path}, the list of images, is missing: check the folder and the list.'
        ) from None


def _parse(root: Path, img_id: str) -> ElementTree.ElementTree:
    path = root / 'Annotations' / f'{img_id}.xml'
    try:
        return ElementTree.parse(path)
    except (FileNotFoundError, ElementTree.ParseError) as error:
        raise FileNotFoundError(
            f'{path}, the annotation of a listed image, cannot be read ({error}).'
        ) from error


def _box(node: ElementTree.Element) -> list[int]:
    """VOC's corners count from 1; MMDetection subtracts 1 from all four."""
    corners = (
        node.findtext(f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')
    )
    return [int(float(corner)) - 1 for corner in corners]


def _is_trained_on(node: ElementTree.Element) -> bool:
    x1, y1, x2, y2 = _box(node)
    return node.findtext('difficult', '0') == '0' and x2 > x1 and y2 > y1


def _write(root: Path, out: Path, trees: dict, spoilt: list[dict]) -> None:
    partial = out.with_name(f'{out.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was cut off
    shutil.copytree(root / 'Annotations', partial / 'Annotations')
    for img_id, tree in trees.items():
        tree.write(partial / 'Annotations' / f'{img_id}.xml')
    for folder in ('ImageSets', 'JPEGImages'):
        (partial / folder).symlink_to((root / folder).resolve())
    (partial / 'corrupted.json').write_text(json.dumps(spoilt, indent=1))
    os.replace(partial, out)


def count_found(ranked: list[Hard], spoilt: list[dict], first: int) -> int:
    """How many of the spoilt labels stand among the first entries of a report's list.

    A wrong class is found by its own box, an object that was left out by a spot of
    background that overlaps its box by IoU 0.5 or more.

    Args:
        ranked: ground-truth boxes, or spots, of `find_hardest`.
        spoilt: what `corrupt_labels` returned.
        first: how many entries count.
    """
    shown = ranked[:first]
    return sum(any(_is_of(hard, label) for hard in shown) for label in spoilt)


def _is_of(hard: Hard, label: dict) -> bool:
    if hard.img_id != label['img_id'] or hard.label != (label['given'] or BACKGROUND):
        return False
    boxes = torch.tensor([hard.box, label['box']], dtype=torch.float32)
    iou = float(bbox_overlaps(boxes[:1], boxes[1:]))
    return iou >= (0.5 if label['given'] is None else 0.9)
