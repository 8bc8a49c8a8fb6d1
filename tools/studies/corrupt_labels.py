"""A copy of a data set in VOC layout with some labels spoilt, to see who finds them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from mmdet_ohem.datasets import (
    is_difficult,
    read_lines,
    read_voc_annotation,
    voc_box,
)


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
        ValueError: the fractions are out of range, there is only one class, or an
            annotation is broken or has a box that is none.
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
    trees = {
        img_id: read_voc_annotation(_annotation(root, img_id)) for img_id in img_ids
    }
    objects = [
        (img_id, node, box)
        for img_id, tree in trees.items()
        for node in tree.findall('object')
        for box in [voc_box(node, _annotation(root, img_id))]
        if not is_difficult(node, _annotation(root, img_id)) and _has_area(box)
    ]
    classes = {node.findtext('name') for _, node, _ in objects}
    if None in classes:
        raise ValueError(f'An object of {image_list}.txt has no name: correct it.')
    classes = sorted(classes)
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
        img_id, node, box = objects[i]
        label, given = node.findtext('name'), None
        if i in order[:num_wrong]:
            given = str(rng.choice([name for name in classes if name != label]))
            node.find('name').text = given
        else:
            trees[img_id].getroot().remove(node)
        spoilt.append(dict(img_id=img_id, box=box, label=label, given=given))
    _write(root, out, trees, spoilt)
    return spoilt


def _read_list(path: Path) -> list[str]:
    try:
        return [img_id for line in read_lines(path) for img_id in line.split()]
    except FileNotFoundError:
        raise FileNotFoundError(
            f'{path}, the list of images, is missing: check the folder and the list.'
        ) from None


def _annotation(root: Path, img_id: str) -> Path:
    return root / 'Annotations' / f'{img_id}.xml'


def _has_area(box: list[int]) -> bool:
    x1, y1, x2, y2 = box
    return x2 > x1 and y2 > y1


def _write(root: Path, out: Path, trees: dict, spoilt: list[dict]) -> None:
    partial = out.with_name(f'{out.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was cut off
    try:
        shutil.copytree(root / 'Annotations', partial / 'Annotations')
        for img_id, tree in trees.items():
            tree.write(_annotation(partial, img_id))
        for folder in ('ImageSets', 'JPEGImages'):
            (partial / folder).symlink_to((root / folder).resolve())
        (partial / 'corrupted.json').write_text(json.dumps(spoilt, indent=1))
        os.replace(partial, out)
    except RecursionError as error:
        raise ValueError(f'{root / "Annotations"} has nested elements.') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
