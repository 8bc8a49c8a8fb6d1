"""Rotated boxes without MMRotate: box types with the interface of MMRotate's, and the
parts of a small RoI head that takes them. An independent IoU, by Shapely's polygons."""

import math

import numpy as np
import shapely
import torch
from mmcv.ops import RoIAlignRotated
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import (
    BaseBoxes,
    HorizontalBoxes,
    get_box_tensor,
    register_box,
    register_box_converter,
)
from mmengine.model import BaseModule
from mmengine.structures import InstanceData


def corners(box) -> list[tuple[float, float]]:
    """Of a box x1, y1, x2, y2 or cx, cy, w, h, angle, or of eight numbers."""
    numbers = [float(number) for number in box]
    if len(numbers) == 8:
        return list(zip(numbers[::2], numbers[1::2], strict=True))
    if len(numbers) == 4:
        x1, y1, x2, y2 = numbers
        return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    x, y, w, h, angle = numbers
    cos, sin = math.cos(angle), math.sin(angle)
    return [
        (x + u * cos - v * sin, y + u * sin + v * cos)
        for u, v in ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
    ]


def polygon_ious(boxes, others) -> np.ndarray:
    """(S, N) in double precision, of S and N boxes; 0 where one has no area.

    Where sides lie on one line, GEOS may find that a box inside another has nothing in
    common with it. On a grid it does not, but takes thirty times as long.
    """
    first, second = (
        shapely.polygons(np.reshape([corners(box) for box in some], (-1, 4, 2)))
        for some in (boxes, others)
    )
    pairs = np.broadcast_arrays(first[:, None], second[None, :])
    areas = shapely.area(pairs[0]) + shapely.area(pairs[1])
    common = shapely.area(shapely.intersection(*pairs))
    doubtful = np.abs(common + shapely.area(shapely.union(*pairs)) - areas) > 1e-9
    of_doubtful = [part[doubtful] for part in pairs]
    common[doubtful] = shapely.area(shapely.intersection(*of_doubtful, grid_size=1e-12))
    union = areas - common
    has_area = [
        np.array([len(box) != 5 or (box[2] > 0 and box[3] > 0) for box in some], bool)
        for some in (boxes, others)
    ]
    return np.where(
        np.logical_and.outer(*has_area), common / np.maximum(union, 1e-30), 0
    )


def polygon_iou(a, b) -> float:
    return float(polygon_ious([a], [b])[0, 0])


def not_needed(self, *args, **kwargs):
    raise NotImplementedError


class FewMethods(BaseBoxes):
    """What MMDetection asks of every box type, and mining does not use."""

    flip_ = translate_ = clip_ = rotate_ = project_ = rescale_ = resize_ = not_needed
    is_inside = find_inside_points = overlaps = from_instance_masks = not_needed


@register_box('turned')
class TurnedBoxes(FewMethods):
    """(N, 5): cx, cy, w, h, angle in radians, clockwise where y points down."""

    box_dim = 5
    centers = property(lambda self: self.tensor[..., :2])
    widths = property(lambda self: self.tensor[..., 2])
    heights = property(lambda self: self.tensor[..., 3])
    areas = property(lambda self: self.widths * self.heights)


@register_box('four_corners')
class FourCorners(FewMethods):
    """(N, 8); as of MMRotate's, nobody asks for width or height without a warning."""

    box_dim = 8
    centers = property(lambda self: self.tensor.unflatten(-1, (4, 2)).mean(dim=-2))
    widths = heights = property(not_needed)

    @property
    def areas(self):
        x, y = self.tensor.unflatten(-1, (4, 2)).unbind(dim=-1)
        return ((x * y.roll(-1, -1) - x.roll(-1, -1) * y).sum(dim=-1) / 2).abs()


def of_corners(boxes) -> torch.Tensor:
    """(N, 4) around the corners of boxes of any kind."""
    found = torch.tensor([corners(box) for box in boxes.tolist()]).reshape(-1, 4, 2)
    return torch.cat([found.amin(dim=1), found.amax(dim=1)], dim=1)


def to_turned(boxes) -> torch.Tensor:
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat([centres, sides, boxes.new_zeros(len(boxes), 1)], dim=1)


register_box_converter(TurnedBoxes, HorizontalBoxes, of_corners)
register_box_converter(FourCorners, HorizontalBoxes, of_corners)
register_box_converter(HorizontalBoxes, TurnedBoxes, to_turned)


@TASK_UTILS.register_module()
class PolygonOverlaps:
    """For the assigner: the ground truth is taken as the RoIs are."""

    def __call__(self, gt_bboxes, priors, mode='iou', is_aligned=False):
        if isinstance(gt_bboxes, BaseBoxes):
            gt_bboxes = get_box_tensor(gt_bboxes.convert_to(type(priors)))
        ious = polygon_ious(gt_bboxes.tolist(), get_box_tensor(priors).tolist())
        return torch.from_numpy(ious).float()


@TASK_UTILS.register_module()
class FiveDeltas:
    """Deltas of centre, size and angle, from boxes of either kind to rotated ones."""

    encode_size = 5

    def encode(self, priors, gts):
        prior, gt = self._five(priors), self._five(gts)
        sides = prior[:, 2:4]
        shift, scale = (gt[:, :2] - prior[:, :2]) / sides, (gt[:, 2:4] / sides).log()
        return torch.cat([shift, scale, gt[:, 4:] - prior[:, 4:]], dim=1)

    def decode(self, priors, deltas, max_shape=None):
        prior = self._five(priors)
        sides, deltas = prior[:, 2:4], deltas.clamp(-1, 1)
        parts = [
            prior[:, :2] + deltas[:, :2] * sides,
            sides * deltas[:, 2:4].exp(),
            prior[:, 4:] + deltas[:, 4:],
        ]
        return TurnedBoxes(torch.cat(parts, dim=1))

    @staticmethod
    def _five(boxes):
        tensor = get_box_tensor(boxes)
        if tensor.shape[1] == 8:
            tensor = of_corners(tensor)
        return to_turned(tensor) if tensor.shape[1] == 4 else tensor


@MODELS.register_module()
class TurnedRoIExtractor(BaseModule):
    """One level of stride 8, for rotated RoIs."""

    num_inputs, featmap_strides, out_channels = 1, [8], 4

    def __init__(self):
        super().__init__()
        self.align = RoIAlignRotated(3, 1 / 8, 1, clockwise=True)

    def forward(self, feats, rois):
        return self.align(feats[0], rois)


def random_rotated_boxes(rng: np.random.Generator, count: int, side: int):
    """(count, 5) float32, of 6 to 60 px a side."""
    return np.concatenate(
        [
            rng.uniform(0, side, (count, 2)),
            np.exp(rng.uniform(np.log(6), np.log(60), (count, 2))),
            rng.uniform(-math.pi / 2, math.pi / 2, (count, 1)),
        ],
        axis=1,
    ).astype(np.float32)


def make_rotated_samples(
    roi_type: type, gt_type: type, seed: int, num_classes: int, num_gts: int = 3
) -> list[DetDataSample]:
    """Two images of 128 x 128: rotated boxes, and proposals near them and anywhere.

    Args:
        roi_type, gt_type: box types of four, five or eight numbers.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(2):
        gts = random_rotated_boxes(rng, num_gts, 128)
        near = gts.repeat(3, axis=0)
        near[:, :2] += rng.uniform(-3, 3, (len(near), 2))
        near[:, 2:4] *= np.exp(rng.uniform(-0.1, 0.1, (len(near), 2)))
        near[:, 4] += rng.uniform(-0.1, 0.1, len(near))
        proposals = np.concatenate([near, random_rotated_boxes(rng, 30, 128)])
        shapes = ('img_shape', 'pad_shape', 'ori_shape', 'batch_input_shape')
        sample = DetDataSample(
            metainfo=dict(dict.fromkeys(shapes, (128, 128)), scale_factor=(1.0, 1.0))
        )
        sample.gt_instances = InstanceData(
            bboxes=_as(gt_type, gts),
            labels=torch.from_numpy(rng.integers(num_classes, size=num_gts)),
        )
        sample.ignored_instances = InstanceData(bboxes=_as(gt_type, gts[:0]))
        sample.proposals = InstanceData(bboxes=_as(roi_type, proposals))
        samples.append(sample)
    return samples


def _as(box_type: type, boxes: np.ndarray) -> BaseBoxes:
    """(N, 5) float32 as boxes of a type."""
    numbers = torch.from_numpy(boxes)
    if box_type.box_dim == 4:
        numbers = of_corners(numbers)
    elif box_type.box_dim == 8:
        points = [np.ravel(corners(box)) for box in boxes]
        numbers = torch.tensor(np.array(points, np.float32)).reshape(-1, 8)
    return box_type(numbers)
