"""FROC: how many objects are found for how many false positives per image.

The free-response operating characteristic and its seven rates are LUNA16's (Setio et
al., Medical Image Analysis 2017, and its script noduleCADEvaluationLUNA16.py). Arrays
go in and out; nothing here knows MMDetection.

Shapes:
    D: detections of an image
    G: its objects
    I: its objects that count neither way: VOC's difficult ones, COCO's crowds
    C: classes
    K: points of a curve, one for each distinct score, and one before the first
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# False positives per image at which LUNA16 reads the sensitivity.
RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
# What a detection can be.
HIT, DUPLICATE, FALSE, NEITHER = range(4)
# Instead of 0 where an area divides.
TINY = np.finfo(np.float64).tiny


def judge(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    objects: np.ndarray,
    object_labels: np.ndarray,
    ignored: np.ndarray,
    ignored_labels: np.ndarray,
    iou_thr: float = 0.5,
) -> np.ndarray:
    """What each detection of an image is.

    As in VOC, a detection belongs to the object of its class that it overlaps most, if
    by an IoU of ``iou_thr`` or more. Of those that belong to an object the one with the
    highest score is its HIT and the others are each a DUPLICATE. What belongs to none
    is FALSE. NEITHER is what is no hit and lies within an ignored object of its class
    by ``iou_thr`` of its own area or more, which is COCO's rule for crowds. How many
    there are of each kind above a score does not depend on the order of equal scores.

    Args:
        boxes, scores, labels: (D, 4) x1, y1, x2, y2, (D,) and (D,) int.
        objects, object_labels: (G, 4) and (G,) int.
        ignored, ignored_labels: (I, 4) and (I,) int.
        iou_thr: above 0.

    Returns:
        (D,) int: HIT, DUPLICATE, FALSE or NEITHER.
    """
    boxes, objects, ignored = (
        np.asarray(part, np.float64).reshape(-1, 4)
        for part in (boxes, objects, ignored)
    )
    scores, labels = np.asarray(scores), np.asarray(labels)
    areas = _areas(boxes)[:, None]

    shared = _intersections(boxes, objects)
    iou = shared / np.maximum(areas + _areas(objects) - shared, TINY)
    iou[labels[:, None] != object_labels] = 0
    # The last column stands for no object at all.
    iou = np.hstack([iou, np.full_like(areas, -1)])
    owner, belongs = iou.argmax(axis=1), iou.max(axis=1) >= iou_thr

    part_within = _intersections(boxes, ignored) / np.maximum(areas, TINY)
    is_within = (part_within >= iou_thr) & (labels[:, None] == ignored_labels)
    is_within = is_within.any(axis=1)

    kinds = np.where(belongs, DUPLICATE, FALSE)
    kinds[is_within] = NEITHER
    # Of equal scores one outside of what is ignored is the hit: whichever comes first,
    # as many false positives are left.
    order = np.lexsort((is_within, -scores))
    order = order[belongs[order]]
    _, first = np.unique(owner[order], return_index=True)
    kinds[order[first]] = HIT
    return kinds


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _intersections(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    near = np.maximum(boxes[:, None, :2], others[None, :, :2])
    far = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (far - near).clip(min=0).prod(axis=2)


@dataclass
class FROCCurve:
    """Sensitivity against false positives per image, by falling score.

    Args:
        fp_per_image, sensitivity: (K,) rising; of the detections with a score of
            ``scores`` or more. Without any object the sensitivity is NaN.
        scores: (K,) falling; the first point is before all detections, inf.
    """

    fp_per_image: np.ndarray
    sensitivity: np.ndarray
    scores: np.ndarray

    @property
    def highest_rate(self) -> float:
        """False positives per image of all detections; beyond it nothing is known."""
        return float(self.fp_per_image[-1])

    def sensitivity_at(self, rates: Sequence[float] = RATES) -> np.ndarray:
        """The sensitivity at some false positives per image, straight lines between the
        points, as LUNA16's script reads it.

        At a rate that the detections do not reach it is that of all detections, which
        is the least that more of them would give.
        """
        return np.interp(rates, self.fp_per_image, self.sensitivity)

    def at_recall(self, recall: float) -> tuple[float, float]:
        """(false positives per image, score) of the first point whose sensitivity is
        ``recall`` or more; NaN twice if there is none."""
        reaching = np.flatnonzero(self.sensitivity >= recall)
        if len(reaching) == 0:
            return np.nan, np.nan
        return float(self.fp_per_image[reaching[0]]), float(self.scores[reaching[0]])


def froc_curve(
    hits: np.ndarray, false: np.ndarray, num_objects: int, num_images: int
) -> FROCCurve:
    """The curve of all detections of some images.

    Args:
        hits: scores of the hits, one at most for each object.
        false: scores of the false positives.
        num_objects: of all images, found or not.
        num_images: those that the false positives are from, with objects or without.
    """
    scores = np.unique(np.concatenate([hits, false]))[::-1]
    found, fired = (
        len(part) - np.searchsorted(np.sort(part), scores) for part in (hits, false)
    )
    return FROCCurve(
        fp_per_image=np.concatenate([[0], fired]) / num_images,
        sensitivity=np.concatenate([[0], found]) / (num_objects or np.nan),
        scores=np.concatenate([[np.inf], scores]),
    )


@dataclass
class Judged:
    """Detections of N images, and what each is.

    Args:
        image: (D,) int, the number of the image that a detection is of.
        labels, scores, kinds: (D,), of all images; see `judge`.
        num_objects: (N, C) int, objects that count.
        is_empty: (N, C) bool, whether an image has no object of the class at all,
            ignored ones included.
    """

    image: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    kinds: np.ndarray
    num_objects: np.ndarray
    is_empty: np.ndarray

    @classmethod
    def join(cls, images: Sequence['Judged']) -> 'Judged':
        """Of several images, or parts of a data set, one."""
        firsts = np.cumsum([0, *(len(part.is_empty) for part in images[:-1])])
        parts = {
            name: np.concatenate([getattr(part, name) for part in images])
            for name in cls.__dataclass_fields__
        }
        sizes = [len(part.image) for part in images]
        parts['image'] = parts['image'] + np.repeat(firsts, sizes)
        return cls(**parts)

    def of_class(self, label: int) -> 'Judged':
        """The same of one class alone."""
        keep = self.labels == label
        return Judged(
            self.image[keep],
            self.labels[keep],
            self.scores[keep],
            self.kinds[keep],
            self.num_objects[:, [label]],
            self.is_empty[:, [label]],
        )

    def hit_scores(self) -> np.ndarray:
        return self.scores[self.kinds == HIT]

    def false_scores(self, ignore_duplicates: bool = False) -> np.ndarray:
        """Of the false positives, all classes together.

        Args:
            ignore_duplicates: whether a duplicate is none, as in LUNA16.
        """
        kinds = [FALSE] if ignore_duplicates else [FALSE, DUPLICATE]
        return self.scores[np.isin(self.kinds, kinds)]

    def false_alarms(self, score_thr: float) -> tuple[int, int]:
        """How many images have no object, and how many of those a detection with a
        score of ``score_thr`` or more."""
        is_empty = self.is_empty.all(axis=1)
        fired = np.zeros(len(is_empty), bool)
        fired[self.image[self.scores >= score_thr]] = True
        return int(is_empty.sum()), int((is_empty & fired).sum())
