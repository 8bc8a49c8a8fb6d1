"""The training images and labels that stay hard: where labels are wrong or missing.

A label that the network contradicts at one checkpoint after the other is hard or wrong.
Every training image goes through the network as it was at several times of a training,
its RoIs are ranked as in hard example mining, and what stands out is listed:
ground-truth boxes, background that the network takes for an object, and images.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmdet.models.detectors import TwoStageDetector
from mmengine.dataset import BaseDataset

from mmdet_ohem.datasets import is_box
from mmdet_ohem.mining import box_iou, samplers_of
from mmdet_ohem.reports.scoring import Scored, score_image
from mmdet_ohem.runs import load_weights

BACKGROUND = 'background'
# RoIs that overlap by this much, at whatever checkpoint, are one spot of background.
SAME_SPOT = 0.5


@dataclass
class Hard:
    """A ground-truth box, a spot of background or a whole image over the training.

    Args:
        img_id, img_path: of the image.
        losses: one for each checkpoint. Of a ground-truth box: its own, as a RoI. Of a
            spot: the highest of its mined RoIs, 0 where none was mined. Of an image:
            the mean of its mined RoIs.
        box: x1, y1, x2, y2 in pixels of the image file, as MMDetection counts; of a
            rotated box cx, cy, w, h, angle in radians; of a quadrilateral its four
            corners; None for an image.
        label: a class name, or 'background'.
        mined: at how many checkpoints a RoI of it was mined.
        says: what the network takes the box for, a class name or 'background': the last
            one, for a spot the last at which it was mined.
        score: the probability of that.
    """

    img_id: str
    img_path: str
    losses: list[float]
    box: list[float] | None = None
    label: str = ''
    mined: int = 0
    says: str = ''
    score: float = 0.0

    @property
    def loss(self) -> float:
        """The mean over the checkpoints, which ranks."""
        return sum(self.losses) / len(self.losses)


@dataclass
class Report:
    """The hardest first in each list.

    Args:
        checkpoints: files.
        boxes, spots, images: ``spots`` are those taken for an object.
        labelled: by image file its labelled boxes, as `Hard.box`, with those that
            training ignores.
    """

    checkpoints: list[str]
    boxes: list[Hard] = field(default_factory=list)
    spots: list[Hard] = field(default_factory=list)
    images: list[Hard] = field(default_factory=list)
    labelled: dict[str, list[list[float]]] = field(default_factory=dict)


class _History:
    """What one image was at each checkpoint so far."""

    def __init__(
        self, scored: Scored, classes: list[str], num_checkpoints: int
    ) -> None:
        self.classes = classes
        self.num_checkpoints = num_checkpoints
        self.img_id = scored.sample.img_id
        self.img_path = scored.sample.img_path
        self.image = self._new()
        names = [classes[label] for label in scored.sample.gt_instances.labels.tolist()]
        self.boxes = [
            self._new(box, name)
            for box, name in zip(scored.gt_boxes.tolist(), names, strict=True)
        ]
        self.spots: list[Hard] = []
        self.labelled = scored.labelled_boxes.tolist()

    def add(self, scored: Scored, checkpoint: int) -> None:
        """Note what the image was at a checkpoint.

        Raises:
            ValueError: the ground truth is not what it was before.
        """
        if len(self.boxes) != len(scored.gt_boxes):
            raise ValueError(
                f'The training pipeline keeps {len(scored.gt_boxes)} boxes of '
                f'{self.img_path} now and kept {len(self.boxes)} before: leave '
                'random crops and mosaics out of train_dataloader.dataset.pipeline.'
            )
        self.image.losses[checkpoint] = scored.mined_loss
        spots = [self._spot_at(box) for box in scored.spot_boxes]
        losses = torch.cat([scored.gt_losses, scored.spot_losses]).tolist()
        mined = [*scored.gt_mined.tolist(), *[True] * len(spots)]
        for hard, loss, was_mined, scores in zip(
            [*self.boxes, *spots], losses, mined, scored.scores, strict=True
        ):
            if hard.losses[checkpoint] > 0:
                continue  # a harder RoI of this spot was there already
            hard.losses[checkpoint] = loss
            hard.mined += was_mined
            hard.says = self.classes[int(scores.argmax())]
            hard.score = float(scores.max())

    def _new(self, box: list[float] | None = None, label: str = '') -> Hard:
        if box is not None:
            # A tenth of a pixel; the angle of a rotated box to a tenth of a degree.
            digits = [1, 1, 1, 1, 3] if len(box) == 5 else [1] * len(box)
            box = [round(x, n) for x, n in zip(box, digits, strict=True)]
        losses = [0.0] * self.num_checkpoints
        return Hard(self.img_id, self.img_path, losses, box, label)

    def _spot_at(self, box: torch.Tensor) -> Hard:
        """The spot of background at a box (4,) or (5,), made where there is none."""
        known = torch.tensor([spot.box for spot in self.spots]).reshape(-1, len(box))
        ious = box_iou(box[None], known)[0]
        if len(ious) > 0 and ious.max() >= SAME_SPOT:
            return self.spots[int(ious.argmax())]
        self.spots.append(self._new(box.tolist(), BACKGROUND))
        return self.spots[-1]


def find_hardest(
    detector: TwoStageDetector,
    dataset: BaseDataset,
    checkpoints: list[str],
    num: int = 64,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Report:
    """Score every label of a training set at several times of a training.

    Args:
        detector: with a RoI head of any sampler; of a cascade the first stage counts.
        dataset: with a training pipeline, of whose transforms resizes and flips are
            undone, and others that move boxes may not be there.
        checkpoints: files of the training, in the order of time.
        num: RoIs that are mined per image, after NMS at 0.7 (the paper's section 4.1).
        progress: wraps an iterable, to show how far it is.

    Raises:
        ValueError: a checkpoint is of another config, an image cannot be read, or the
            pipeline drops or the sampler leaves out ground-truth boxes.
    """
    if not getattr(samplers_of(detector.roi_head)[0], 'add_gt_as_proposals', False):
        raise ValueError(
            'The hardest ground-truth boxes are ranked by their own loss as RoIs: set '
            'add_gt_as_proposals=True in train_cfg.rcnn.sampler.'
        )
    detector.eval()
    classes = [*dataset.metainfo['classes'], BACKGROUND]
    histories: dict[str, _History] = {}
    passes = [(c, i) for c in range(len(checkpoints)) for i in range(len(dataset))]
    for c, i in progress(passes):
        if i == 0:
            load_weights(detector, checkpoints[c])
        scored = score_image(detector, _read(dataset, i), num)
        img_id = scored.sample.img_id
        if img_id not in histories:
            histories[img_id] = _History(scored, classes, len(checkpoints))
        histories[img_id].add(scored, c)
    images = histories.values()
    return Report(
        [str(checkpoint) for checkpoint in checkpoints],
        _ranked(box for image in images for box in image.boxes),
        _ranked(
            spot for image in images for spot in image.spots if spot.says != BACKGROUND
        ),
        _ranked(image.image for image in images),
        {image.img_path: image.labelled for image in images},
    )


def _ranked(entries: Iterable[Hard]) -> list[Hard]:
    return sorted(entries, key=lambda hard: -hard.loss)


def _read(dataset: BaseDataset, index: int) -> dict:
    try:
        return dataset[index]
    except (OSError, AssertionError) as error:  # mmcv asserts that there is an image
        path = dataset.get_data_info(index)['img_path']
        raise ValueError(
            f'{path} cannot be read as an image: replace it, or take it out of the '
            'list of training images.'
        ) from error


def read_spoilt(path: str | os.PathLike) -> list[dict]:
    """The labels that tools/corrupt_labels.py spoilt, from its corrupted.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        spoilt = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError):  # the latter from JSON that is nested deeply
        spoilt = None
    if not (isinstance(spoilt, list) and all(map(_is_spoilt, spoilt))):
        raise ValueError(
            f'{path} holds no list of spoilt labels: give the corrupted.json that '
            'tools/corrupt_labels.py wrote beside the annotations.'
        )
    return spoilt


def _is_spoilt(label) -> bool:
    return (
        isinstance(label, dict)
        and isinstance(label.get('img_id'), str)
        and is_box(label.get('box'))
        and isinstance(label.get('given', 0), str | None)
    )


def count_found(ranked: list[Hard], spoilt: list[dict], first: int) -> int:
    """How many of the spoilt labels stand among the first entries of a report's list.

    A wrong class is found by its own box, an object that was left out by a spot of
    background that overlaps its box by IoU 0.5 or more.

    Args:
        ranked: ground-truth boxes, or spots, of `find_hardest`.
        spoilt: some of `read_spoilt`.
        first: how many entries count.
    """
    shown = ranked[:first]
    return sum(any(_is_of(hard, label) for hard in shown) for label in spoilt)


def _is_of(hard: Hard, label: dict) -> bool:
    if hard.img_id != label['img_id'] or hard.label != (label['given'] or BACKGROUND):
        return False
    boxes = torch.tensor([hard.box, label['box']], dtype=torch.float32)
    iou = float(box_iou(boxes[:1], boxes[1:]))
    return iou >= (0.5 if label['given'] is None else 0.9)
