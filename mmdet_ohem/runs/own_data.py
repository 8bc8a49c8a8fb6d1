"""A data set of one's own: its two splits, the files that training needs of them, and
what is measured on them."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmdet_ohem.datasets import (
    LabelledImage,
    coco_content,
    draw_split,
    hash_images,
    near_duplicates,
    object_sizes,
    read_annotations,
    read_coco_json,
)
from mmdet_ohem.proposals import clean_boxes, search_in_order
from mmdet_ohem.whole_file import whole_file

# Images on which the number of proposals is measured.
SAMPLE = 12


@dataclass
class Source:
    """What a user gives of a split.

    Args:
        images: image folder.
        annotations: folder of XML files, or COCO's JSON file.
        image_list: file with the ids of the images that count, one a line; None: all
            that are annotated.
    """

    images: Path
    annotations: Path
    image_list: Path | None = None

    def read(self) -> list[LabelledImage]:
        """Raises FileNotFoundError or ValueError, see `read_annotations`."""
        found = read_annotations(self.annotations, self.images)
        if self.image_list is None:
            return found
        if not self.image_list.is_file():
            raise FileNotFoundError(f'There is no list of images {self.image_list}.')
        by_id = {image.img_id: image for image in found}
        lines = map(str.strip, self.image_list.read_text().splitlines())
        ids = list(dict.fromkeys(filter(None, lines)))
        for img_id in ids:
            if img_id not in by_id:
                raise ValueError(
                    f'{self.image_list} names the image {img_id!r}, which '
                    f'{self.annotations} does not annotate: correct one of them.'
                )
        return [by_id[img_id] for img_id in ids]


@dataclass
class Split:
    """The training or the test images, and where they come from."""

    source: Source
    images: list[LabelledImage]
    is_drawn: bool = False


def make_splits(
    train: Source,
    test: Source | None,
    test_fraction: float,
    seed: int,
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[Split, Split, list[tuple[str, str]]]:
    """Read both splits, or draw the second from the first.

    Returns:
        The training split, the test split, and the near-duplicates between them, as
        pairs of image files.

    Raises:
        FileNotFoundError, ValueError: see `read_annotations` and `draw_split`, or an
            image stands in both.
    """
    of_train = train.read()
    if test is None:
        hashes = hash_images([image.file for image in of_train], progress)
        first, second = draw_split(hashes, test_fraction, seed)
        return (
            Split(train, [of_train[i] for i in first], True),
            Split(train, [of_train[i] for i in second], True),
            [],
        )
    of_test = test.read()
    both = {image.img_id for image in of_train} & {image.img_id for image in of_test}
    if both:
        raise ValueError(
            f'{len(both)} images are both in the training and in the test set, '
            f'{min(both)!r} among them: give lists that have no image in common.'
        )
    hashes = hash_images([image.file for image in of_train + of_test], progress)
    pairs = near_duplicates(hashes[: len(of_train)], hashes[len(of_train) :])
    files = [(str(of_train[i].file), str(of_test[j].file)) for i, j in pairs]
    return Split(train, of_train), Split(test, of_test), files


def class_names(splits: Iterable[Split]) -> list[str]:
    """The classes that have an object: of XML files by name, of COCO's files in their
    order.

    Raises:
        ValueError: no image has an object.
    """
    splits = list(splits)
    there = {name for split in splits for image in split.images for name in image.names}
    if not there:
        raise ValueError(
            f'{splits[0].source.annotations} has no object in it: check the '
            'annotations.'
        )
    ordered = sorted(there)
    if splits[0].source.annotations.is_file():
        content = read_coco_json(splits[0].source.annotations)
        first = [c['name'] for c in content['categories'] if c['name'] in there]
        ordered = [*first, *(name for name in ordered if name not in first)]
    return ordered


def dataset_config(split: Split, name: str, folder: Path, classes: list[str]) -> dict:
    """The data set of a config, and the files that it needs.

    Args:
        name: 'train' or 'test'.
        folder: gets the list or the annotations of a split that was drawn, and the
            annotations of what MMDetection's VOCDataset cannot read: images that are
            no .jpg, and folders with VOC2007 or VOC2012 in their names, for which it
            prints VOC's own classes.

    Returns:
        type, ann_file and the like, without classes, proposals and pipeline.
    """
    source = split.source
    if source.annotations.is_file():
        ann_file = source.annotations
        if split.is_drawn or source.image_list is not None:
            ann_file = folder / f'{name}.json'
            _write_json(ann_file, _part_of_coco(split))
        return _coco_dataset(ann_file, source.images)
    root = _common_folder(source.images, source.annotations)
    fits = all(image.file.suffix == '.jpg' for image in split.images)
    if not fits or any(word in str(root) for word in ('VOC2007', 'VOC2012')):
        ann_file = folder / f'{name}.json'
        _write_json(ann_file, coco_content(split.images, classes, source.images))
        return _coco_dataset(ann_file, source.images)
    ann_file = source.image_list
    ids = [image.img_id for image in split.images]
    # VOCDataset takes every line as it is, blanks and repetitions too.
    if ann_file is None or ann_file.read_text().splitlines() != ids:
        ann_file = folder / f'{name}.txt'
        lines = ''.join(f'{img_id}\n' for img_id in ids)
        with whole_file(ann_file) as partial:
            partial.write_text(lines)
    return dict(
        type='VOCDataset',
        data_root=f'{root}/',
        data_prefix=dict(sub_data_root=''),
        img_subdir=os.path.relpath(source.images, root),
        ann_subdir=os.path.relpath(source.annotations, root),
        ann_file=os.path.relpath(ann_file, root),
    )


def _common_folder(*folders: Path) -> Path:
    if any(folder.is_absolute() for folder in folders):
        folders = [folder.absolute() for folder in folders]
    return Path(os.path.commonpath(folders))


def _coco_dataset(ann_file: Path, images: Path) -> dict:
    return dict(
        type='CocoDataset',
        ann_file=str(ann_file),
        data_prefix=dict(img=f'{images}/'),
    )


def _part_of_coco(split: Split) -> dict:
    """What the COCO file says of the images of a split, all its keys kept."""
    content = read_coco_json(split.source.annotations)
    kept = {image.img_id for image in split.images}
    images = [i for i in content['images'] if Path(i['file_name']).stem in kept]
    ids = {image['id'] for image in images}
    annotations = [a for a in content['annotations'] if a['image_id'] in ids]
    return dict(content, images=images, annotations=annotations)


def _write_json(path: Path, content: dict) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content))


def has_masks(split: Split) -> bool:
    """Whether every object of a COCO file has a segmentation."""
    if not split.source.annotations.is_file():
        return False
    content = read_coco_json(split.source.annotations)
    return all(a.get('segmentation') for a in content['annotations'])


def describe(train: Split, test: Split, classes: list[str]) -> str:
    """Images, objects and their sizes, as lines for a terminal."""
    splits = (train, test)
    counts = [
        Counter(name for image in split.images for name in image.names)
        for split in splits
    ]
    rows = [('', 'train', 'test'), ('images', *(len(split.images) for split in splits))]
    rows += [(name, *(count[name] for count in counts)) for name in classes]
    width = max(len(str(row[0])) for row in rows)
    lines = [f'{row[0]:<{width}}  {row[1]:>7}  {row[2]:>7}' for row in rows]
    images = train.images + test.images
    per_image = [len(image.names) for image in images]
    low, median, high = np.quantile(object_sizes(images), (0.1, 0.5, 0.9))
    sizes = Counter(image.size for image in images)
    (w, h), most = sizes.most_common(1)[0]
    others = '' if len(sizes) == 1 else f' ({most}; there are {len(sizes)} sizes)'
    lines += [
        f'objects an image: {np.median(per_image):.0f} (median), {min(per_image)} to '
        f'{max(per_image)}; {per_image.count(0)} images have none',
        f'size of an object (root of its area): {median:.0f} px (median), 80% from '
        f'{low:.0f} to {high:.0f} px',
        f'size of an image: {w} x {h} px{others}',
    ]
    lines += [
        f'WARNING: the training images have no {name}, so it cannot be learnt.'
        for name in classes
        if not counts[0][name]
    ]
    return '\n'.join(lines)


def sample_proposals(
    images: list[LabelledImage],
    progress: Callable[[Iterable, int], Iterable] = lambda values, total: values,
) -> list[tuple[LabelledImage, np.ndarray]]:
    """Selective Search on some images, spread over all of them.

    Args:
        progress: wraps what gives the number of values that comes second.

    Returns:
        The images and their proposals (R, 4), cleaned as a store's are, of every size.

    Raises:
        ImportError: this OpenCV has no Selective Search.
        ValueError: an image cannot be read.
    """
    places = np.linspace(0, len(images) - 1, min(SAMPLE, len(images)), dtype=int)
    chosen = [images[i] for i in places]
    found = []
    searched = search_in_order([image.file for image in chosen])
    for image, boxes in zip(chosen, progress(searched, len(chosen)), strict=True):
        if boxes is None:
            raise ValueError(
                f'{image.file} cannot be read as an image: replace or remove it.'
            )
        found.append((image, clean_boxes(boxes, image.size, name=image.img_id)))
    return found
