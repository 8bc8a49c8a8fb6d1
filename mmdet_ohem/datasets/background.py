"""Pictures without objects to train on: all of a pool, or those of a background set.

A background set is what a detector got wrong in a pool of pictures that hold no object:
a file of JSON lines, which tools/mine_background.py writes. The first line says how it
was made, and each other line is a picture with its false positives, hardest first.
Beside it may lie ``struck_off.txt``, a text file of what people found to be no
background after all, a name a line, see `FalsePositives.names`.

Letters for shapes:
    N: false positives of a picture
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from mmdet.datasets import BaseDetDataset
from mmengine.logging import print_log

from mmdet_ohem.config import as_list
from mmdet_ohem.datasets.images import image_size, picture_ids, pool_pictures
from mmdet_ohem.registry import DATASETS
from mmdet_ohem.whole_file import whole_file

FORMAT = 'mmdet_ohem background 1'
REMAKE = 'make it with tools/mine_background.py'
STRUCK_OFF = 'struck_off.txt'


@dataclass
class FalsePositives:
    """What a detector found in a picture without objects, the surest first.

    Args:
        img_id: name of the picture in its pool, see `picture_ids`.
        file: of the picture.
        width, height: in px.
        boxes: N times x1, y1, x2, y2 in px of the file.
        labels: N names of classes.
        scores: N, from 0 to 1.
    """

    img_id: str
    file: str
    width: int
    height: int
    boxes: list[list[float]]
    labels: list[str]
    scores: list[float]

    @property
    def names(self) -> list[str]:
        """What each box is called in ``struck_off.txt``: the picture, a space and the
        corners in whole px, such as 'street/0012 14,20,88,61'."""
        return [
            f'{self.img_id} {",".join(str(round(x)) for x in box)}'
            for box in self.boxes
        ]


def write_background(
    path: str | os.PathLike, made_by: dict, images: Iterable[FalsePositives]
) -> None:
    """Write a background set, whole or not at all.

    Args:
        made_by: has the names of the detector's ``classes``, the number of pictures
            with false positives (``images``), and whatever else is to be known.
        images: those pictures, hardest first.
    """
    with whole_file(path) as partial, open(partial, 'w') as file:
        file.write(json.dumps(dict(format=FORMAT, **made_by)) + '\n')
        for image in images:
            file.write(json.dumps(asdict(image)) + '\n')


def read_made_by(path: str | os.PathLike) -> dict:
    """The first line of a background set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no background set.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'There is no background set {path}: {REMAKE}.')
    with open(path, 'rb') as file:
        try:
            made_by = json.loads(file.readline())
            is_one = made_by['format'] == FORMAT and type(made_by['images']) is int
            if is_one and all(isinstance(name, str) for name in made_by['classes']):
                return made_by
        # A RecursionError comes from JSON that is nested deeply.
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
    raise ValueError(f'{path} is no background set: {REMAKE}.')


def read_background(path: str | os.PathLike) -> Iterator[FalsePositives]:
    """The pictures of a background set, one after the other.

    Raises:
        FileNotFoundError, ValueError: see `read_made_by`; or a line is damaged, or
            missing.
    """
    number = read_made_by(path)['images']
    count = 0
    with open(path, 'rb') as file:
        next(file)
        for count, line in enumerate(file, start=1):
            try:
                image = FalsePositives(**json.loads(line))
                _check(image)
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f'Line {count + 1} of the background set {path} is damaged '
                    f'({str(error)[:100]}): {REMAKE}.'
                ) from error
            yield image
    if count != number:
        raise ValueError(
            f'The background set {path} has {count} of its {number} pictures: {REMAKE}.'
        )


def _check(image: FalsePositives) -> None:
    """ValueError or TypeError where an image is not as `FalsePositives` says."""
    boxes = np.array(image.boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1:] != (4,) or not np.isfinite(boxes).all():
        raise ValueError('a box is not four numbers')
    if not len(boxes) == len(image.labels) == len(image.scores):
        raise ValueError('boxes, labels and scores differ in number')
    if not all(isinstance(text, str) for text in (image.img_id, image.file)):
        raise ValueError('a name is no text')
    if not (image.width > 0 and image.height > 0 and math.isfinite(sum(image.scores))):
        raise ValueError('a size or a score is no number')


def read_struck_off(
    path: str | os.PathLike, images: dict[str, FalsePositives]
) -> tuple[set[str], dict[str, list[tuple[int, ...]]]]:
    """What is struck off.

    Args:
        path: of a text file, see above. Nothing is struck off where there is none.
        images: those that have false positives, by id.

    Returns:
        The ids of pictures, and by id of others their boxes, each x1, y1, x2, y2.

    Raises:
        ValueError: a name is none of these pictures' or of their boxes'.
    """
    whole, boxes = set(), {}
    if not os.path.isfile(path):
        return whole, boxes
    for line in Path(path).read_text('utf-8', errors='replace').splitlines():
        img_id, _, corners = line.strip().rpartition(' ')
        if line.strip() in images:
            whole.add(line.strip())
        elif img_id in images and line.strip() in images[img_id].names:
            box = tuple(int(number) for number in corners.split(','))
            boxes.setdefault(img_id, []).append(box)
        elif line.strip():
            raise ValueError(
                f'{path} names {line.strip()[:200]!r}, which is no picture and no box '
                'of the background set beside it: copy the name from the page '
                'background.html, or remove the line.'
            )
    return whole, boxes


@DATASETS.register_module()
class BackgroundDataset(BaseDetDataset):
    """Pictures that hold no object, without annotation files.

    It joins data with objects by MMEngine's ConcatDataset;
    `mmdet_ohem.datasets.with_background` does so for a loader of a config. Where a part
    of a picture is struck off, the picture is loaded with that part painted over, in
    the picture's mean colour; where all of its false positives are, or the picture
    itself is, it is left out. ``filter_cfg`` is not asked.

    Args:
        img_path: all pictures of a folder, of a pattern (*.jpg), or of a list (a text
            file, *.txt, with the path of a picture a line).
        background_set: instead of it a background set, or several, whose pictures are
            joined. What ``struck_off.txt`` beside any of them names stays out.
        others: as in MMDetection's data sets, such as ``metainfo``, with the names of
            the ``classes``, which a background set knows too, and ``pipeline``.

    Raises:
        FileNotFoundError: there is no such set.
        ValueError: there is no picture, or one that cannot be read; the set is damaged,
            of other classes, or all of it is struck off; or ``struck_off.txt`` has an
            unknown name.
    """

    def __init__(
        self,
        img_path: str = '',
        background_set: str | list[str] = (),
        **others,
    ) -> None:
        if bool(img_path) == bool(background_set):
            raise ValueError(
                'mmdet_ohem.BackgroundDataset needs either img_path, a folder of '
                'pictures, or background_set, a file of tools/mine_background.py.'
            )
        self.img_path = img_path
        self.background_set = as_list(background_set)
        metainfo = self._load_metainfo(others.pop('metainfo', None))
        for path in self.background_set:
            of_set = tuple(read_made_by(path)['classes'])
            classes = metainfo.setdefault('classes', of_set)
            if tuple(classes) != of_set:
                raise ValueError(
                    f'The background set {path} was made with other classes '
                    f"({', '.join(of_set)}) than the data set's "
                    f'({", ".join(classes)}): mine it with a detector of these.'
                )
        if 'classes' not in metainfo:
            raise ValueError(
                'mmdet_ohem.BackgroundDataset with img_path needs '
                'metainfo=dict(classes=...), as the data with objects have it.'
            )
        super().__init__(metainfo=metainfo, **others)

    def load_data_list(self) -> list[dict]:
        """What the pipeline starts with of each picture; ``struck_off`` are the boxes
        to paint over."""
        if self.img_path:
            ids = picture_ids(pool_pictures(self.img_path))
            return [
                _data_info(img_id, file, *image_size(file))
                for img_id, file in ids.items()
            ]
        return self._load_sets()

    def _load_sets(self) -> list[dict]:
        images: dict[str, FalsePositives] = {}
        for path in self.background_set:
            for image in read_background(path):
                if not os.path.isfile(image.file):
                    raise FileNotFoundError(
                        f'The picture {image.file} of the background set {path} is '
                        f'missing: {REMAKE} again.'
                    )
                known = images.setdefault(image.img_id, image)
                if known is image:
                    continue
                if not os.path.samefile(known.file, image.file):
                    raise ValueError(
                        f'{known.file} and {image.file} are both called '
                        f'{image.img_id} in their background sets: mine both pools in '
                        'one call of tools/mine_background.py, with a list of pictures.'
                    )
                known.boxes += image.boxes
        whole, parts = set(), {}
        for path in self.background_set:
            of_set, of_images = read_struck_off(Path(path).parent / STRUCK_OFF, images)
            whole |= of_set
            for img_id, boxes in of_images.items():
                parts.setdefault(img_id, []).extend(boxes)
        found = []
        for img_id, image in images.items():
            struck = parts.get(img_id, [])
            corners = {tuple(map(round, box)) for box in image.boxes}
            if img_id not in whole and not corners.issubset(struck):
                size = image.width, image.height
                found.append(_data_info(img_id, image.file, *size, struck))
        # One that is built only to be looked at has no pipeline, and says nothing.
        if self.pipeline.transforms:
            self._log(found, len(images))
        if not found:
            raise ValueError(
                f'{self.background_set[0]} has no false positive to train on, or all '
                'are struck off: leave this background set out.'
            )
        return found

    def _log(self, found: list[dict], number: int) -> None:
        boxes = sum(len(info['struck_off']) for info in found)
        print_log(
            f'{" and ".join(map(str, self.background_set))}: {len(found)} pictures to '
            f'train on, {number - len(found)} struck off; in those that stay {boxes} '
            'boxes are painted over.',
            'current',
        )

    def prepare_data(self, idx: int) -> dict | None:
        """As MMEngine's, but what is struck off is painted over as soon as the picture
        is loaded."""
        data = self.get_data_info(idx)
        struck = data.pop('struck_off')
        for transform in self.pipeline.transforms:
            data = transform(data)
            if data is None:
                return None
            if struck and 'img' in data:
                data['img'] = _painted_over(data['img'], struck)
                struck = []
        return data


def _data_info(
    img_id: str, file: str, width: int, height: int, struck_off: Iterable = ()
) -> dict:
    return dict(
        img_id=img_id,
        img_path=file,
        width=width,
        height=height,
        instances=[],
        struck_off=list(struck_off),
    )


def _painted_over(image: np.ndarray, boxes: list[tuple[int, ...]]) -> np.ndarray:
    image = image.copy()
    colour = image.mean(axis=(0, 1))
    for x1, y1, x2, y2 in boxes:
        image[max(y1, 0) : y2 + 1, max(x1, 0) : x2 + 1] = colour
    return image
