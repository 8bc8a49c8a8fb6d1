"""The training images and labels that stay hard: where labels are wrong or missing.

A label that the network contradicts at one checkpoint after the other is hard or wrong.
Every training image goes through the network as it was at several times of a training,
its RoIs are ranked as in hard example mining, and what stands out is listed:
ground-truth boxes, background that the network takes for an object, and images.

Shapes:
    R: RoIs of an image, P: the foreground among them, which come first
    G: ground-truth boxes
    S: background RoIs that are followed
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip, bbox_overlaps, get_box_tensor
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor

from mmdet_ohem.load_detector import load_weights
from mmdet_ohem.mining import select_hard_rois
from mmdet_ohem.watch import samplers_of, watched

BACKGROUND = 'background'
# Background that overlaps an object by more is hard for being badly placed, not for a
# label that is missing.
FAR_FROM_OBJECTS = 0.3
# RoIs that overlap by this much, at whatever checkpoint, are one spot of background.
SAME_SPOT = 0.5
# The hardest of the background that are followed, for each image and checkpoint.
NUM_SPOTS = 5


@dataclass
class Hard:
    """A ground-truth box, a spot of background or a whole image over the training.

    Args:
        img_id, img_path: of the image.
        losses: one for each checkpoint. Of a ground-truth box: its own, as a RoI. Of a
            spot: the highest of its mined RoIs, 0 where none was mined. Of an image:
            the mean of its mined RoIs.
        box: x1, y1, x2, y2 in pixels of the image file, as MMDetection counts; None for
            an image.
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
    """The hardest first in each list; ``spots`` are those taken for an object."""

    checkpoints: list[str]
    boxes: list[Hard] = field(default_factory=list)
    spots: list[Hard] = field(default_factory=list)
    images: list[Hard] = field(default_factory=list)


@dataclass
class _Scored:
    """An image at one checkpoint, with boxes in pixels of the image file."""

    sample: DetDataSample
    gt_boxes: Tensor  # (G, 4)
    gt_losses: Tensor  # (G,)
    gt_mined: Tensor  # (G,) bool
    spot_boxes: Tensor  # (S, 4)
    spot_losses: Tensor  # (S,), falling
    mined_loss: float
    scores: Tensor  # (G + S, classes + 1), the last for background


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
    if not getattr(samplers_of(detector.roi_head)[0], 'add_gt_as_proposals', True):
        raise ValueError(
            'The hardest ground-truth boxes are ranked by their own loss as RoIs: set '
            'add_gt_as_proposals=True in train_cfg.rcnn.sampler.'
        )
    detector.eval()
    classes = [*dataset.metainfo['classes'], BACKGROUND]
    boxes: dict[str, list[Hard]] = {}
    spots: dict[str, list[Hard]] = {}
    images: dict[str, Hard] = {}
    passes = [(c, i) for c in range(len(checkpoints)) for i in range(len(dataset))]
    for c, i in progress(passes):
        if i == 0:
            load_weights(detector, checkpoints[c])
        scored = _score(detector, _read(dataset, i), num)
        img_id, img_path = scored.sample.img_id, scored.sample.img_path

        def new(box=None, label='', img_id=img_id, img_path=img_path) -> Hard:
            losses = [0.0] * len(checkpoints)
            return Hard(img_id, img_path, losses, box, label)

        if img_id not in images:
            names = [classes[i] for i in scored.sample.gt_instances.labels.tolist()]
            images[img_id], spots[img_id] = new(), []
            boxes[img_id] = [
                new([round(x, 1) for x in box], name)
                for box, name in zip(scored.gt_boxes.tolist(), names, strict=True)
            ]
        if len(boxes[img_id]) != len(scored.gt_boxes):
            raise ValueError(
                f'The training pipeline keeps {len(scored.gt_boxes)} boxes of '
                f'{img_path} now and kept {len(boxes[img_id])} before: leave random '
                'crops and mosaics out of train_dataloader.dataset.pipeline.'
            )
        images[img_id].losses[c] = scored.mined_loss
        found = [
            *boxes[img_id],
            *_match(spots[img_id], scored.spot_boxes, new),
        ]
        losses = torch.cat([scored.gt_losses, scored.spot_losses]).tolist()
        mined = [*scored.gt_mined.tolist(), *[True] * len(scored.spot_losses)]
        for hard, loss, was_mined, scores in zip(
            found, losses, mined, scored.scores, strict=True
        ):
            if hard.losses[c] > 0:
                continue  # a harder RoI of this spot was there already
            hard.losses[c] = loss
            hard.mined += was_mined
            hard.says = classes[int(scores.argmax())]
            hard.score = float(scores.max())
    return Report(
        [str(checkpoint) for checkpoint in checkpoints],
        _ranked(box for of_image in boxes.values() for box in of_image),
        _ranked(
            spot
            for of_image in spots.values()
            for spot in of_image
            if spot.says != BACKGROUND
        ),
        _ranked(images.values()),
    )


def _ranked(entries: Iterable[Hard]) -> list[Hard]:
    return sorted(entries, key=lambda hard: -hard.loss)


def _match(spots: list[Hard], boxes: Tensor, new: Callable) -> list[Hard]:
    """The spot of each of the boxes (S, 4), made where there is none yet."""
    found = []
    for box in boxes:
        known = torch.tensor([spot.box for spot in spots]).reshape(-1, 4)
        ious = bbox_overlaps(box[None], known)[0]
        if len(ious) == 0 or ious.max() < SAME_SPOT:
            spots.append(new([round(x, 1) for x in box.tolist()], BACKGROUND))
            found.append(spots[-1])
        else:
            found.append(spots[int(ious.argmax())])
    return found


def _read(dataset: BaseDataset, index: int) -> dict:
    try:
        return dataset[index]
    except (OSError, AssertionError) as error:  # mmcv asserts that there is an image
        path = dataset.get_data_info(index)['img_path']
        raise ValueError(
            f'{path} cannot be read as an image: replace it, or take it out of the '
            'list of training images.'
        ) from error


@torch.no_grad()
def _score(detector: TwoStageDetector, data: dict, num: int) -> _Scored:
    batch = detector.data_preprocessor(pseudo_collate([data]), training=True)
    with watched(detector.roi_head) as rankings:
        detector(**batch, mode='loss')
    candidates, losses = rankings[0][0].candidates, rankings[0][0].losses
    boxes, num_pos = candidates.boxes, len(candidates.pos_inds)
    mined = select_hard_rois(losses, boxes, num)

    gt_bboxes = get_box_tensor(candidates.gt_bboxes)
    gt_of = candidates.assign_result.gt_inds[candidates.pos_inds] - 1  # (P,)
    is_gt = candidates.gt_flags[candidates.pos_inds] > 0
    gt_losses = losses.new_zeros(len(gt_bboxes))
    gt_losses[gt_of[is_gt]] = losses[:num_pos][is_gt]
    gt_mined = torch.zeros_like(gt_losses, dtype=torch.bool)
    gt_mined[gt_of[mined[mined < num_pos]]] = True

    overlaps = candidates.assign_result.max_overlaps[candidates.neg_inds]
    background = mined[mined >= num_pos]
    far = background[overlaps[background - num_pos] < FAR_FROM_OBJECTS][:NUM_SPOTS]

    sample = batch['data_samples'][0]
    feats = detector.extract_feat(batch['inputs'])
    asked = InstanceData(bboxes=torch.cat([gt_bboxes, boxes[far]]))
    (said,) = detector.roi_head.predict_bbox(
        feats, [sample.metainfo], [asked], rcnn_test_cfg=None
    )
    return _Scored(
        sample.cpu(),
        _in_file(gt_bboxes.cpu(), sample),
        gt_losses.cpu(),
        gt_mined.cpu(),
        _in_file(boxes[far].cpu(), sample),
        losses[far].cpu(),
        float(losses[mined].mean()) if len(mined) else 0.0,
        said.scores.cpu(),
    )


def _in_file(boxes: Tensor, sample: DetDataSample) -> Tensor:
    """Boxes (N, 4) of the network's input in pixels of the image file."""
    if direction := sample.get('flip_direction'):
        boxes = bbox_flip(boxes, sample.img_shape, direction)
    return boxes / boxes.new_tensor(sample.get('scale_factor', (1.0, 1.0))).repeat(2)
