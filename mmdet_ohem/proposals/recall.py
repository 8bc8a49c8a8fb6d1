"""How many of the objects a set of proposals reaches: a cap on any mAP.

Letters for shapes:
    R: proposals of an image, K: its objects
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps

from mmdet_ohem.datasets import LabelledImage

# Below this at IoU 0.5 more than a tenth of the objects can never be found.
LOW_RECALL = 0.9


@dataclass
class ProposalRecall:
    """What `measure_recall` found.

    Args:
        best_ious: of each object, the highest IoU that a proposal has with it.
        num_images: with or without objects.
        num_proposals: of all images.
    """

    best_ious: np.ndarray
    num_images: int
    num_proposals: int

    def at(self, iou: float) -> float:
        """The part of the objects that a proposal overlaps by ``iou`` or more."""
        return float((self.best_ious >= iou).mean())

    @property
    def is_low(self) -> bool:
        return self.at(0.5) < LOW_RECALL

    def __str__(self) -> str:
        return (
            f'Proposal recall: {self.at(0.5):.2f} at IoU 0.5 and {self.at(0.7):.2f} at '
            f'IoU 0.7, mean best IoU {self.best_ious.mean():.2f}, '
            f'{self.num_proposals / self.num_images:.0f} proposals an image '
            f'({len(self.best_ious)} objects, {self.num_images} images).'
        )


def best_ious(proposals: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(K,) the highest IoU of each object with a proposal; 0 where there is none.

    Args:
        proposals: (R, 4) x1, y1, x2, y2.
        objects: (K, 4).
    """
    if not len(proposals) or not len(objects):
        return np.zeros(len(objects), np.float32)
    ious = bbox_overlaps(
        torch.as_tensor(objects, dtype=torch.float32),
        torch.as_tensor(proposals, dtype=torch.float32),
    )
    return ious.max(dim=1).values.numpy()


def measure_recall(
    records: Iterable[tuple[LabelledImage, np.ndarray]],
) -> ProposalRecall:
    """Compare proposals with the objects of their images.

    Objects that are ignored (difficult, crowds) or have no area do not count.

    Args:
        records: images and their proposals (R, 4), in px of the image file.

    Raises:
        ValueError: no image has an object.
    """
    ious, num_images, num_proposals = [], 0, 0
    for image, proposals in records:
        boxes = image.boxes[~image.ignored]
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        ious.append(best_ious(proposals, boxes))
        num_images += 1
        num_proposals += len(proposals)
    found = np.concatenate([*ious, np.zeros(0)])
    if not len(found):
        raise ValueError(
            'None of the images has an object that counts, so there is no recall of '
            'proposals: check the annotations.'
        )
    return ProposalRecall(found, num_images, num_proposals)
