"""Pictures of what a detector finds, and of the RoIs that OHEM mines for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import mmcv
import numpy as np
import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.structures.bbox import get_box_tensor
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer
from torch import Tensor

from mmdet_ohem.mining import Mining, box_iou, watched
from mmdet_ohem.visualization.labels import PAD, leader, place_labels, text_size

# RGB from Okabe and Ito's palette, which colour-blind readers can tell apart.
GROUND_TRUTH = (0, 158, 115)
FOREGROUND = (0, 114, 178)
BACKGROUND = (213, 94, 0)
DETECTION = (204, 121, 167)
FALSE_POSITIVE = BACKGROUND
WHITE = (255, 255, 255)  # to mmcv a single number is the red channel's
# What stands below a sheet of each kind.
MINED_LEGEND = {
    'ground truth': GROUND_TRUTH,
    'mined foreground (rank: loss)': FOREGROUND,
    'mined background (rank: loss)': BACKGROUND,
}
DETECTIONS_LEGEND = {
    'ground truth': GROUND_TRUTH,
    'detection': DETECTION,
    'false positive': FALSE_POSITIVE,
}
# Small images are drawn larger, for legible text.
MIN_WIDTH = 640
# Texts of a picture whose shorter side is 600 px or less, in px; of larger ones in
# proportion.
FONT_PX, FONT_SIDE = 12, 600
# What counts as found, as in VOC.
FOUND_IOU = 0.5
# RoIs with their rank and loss beside them; more would hide the image.
NUM_TEXTS = 8


def draw_mined(
    detector: TwoStageDetector, dataset: BaseDataset, index: int
) -> np.ndarray:
    """Draw the RoIs that the detector's sampler chooses in a training image, as
    `draw_ranking` does. Of a cascade the first stage is shown.

    Args:
        detector: with a RoI head; in eval mode.
        dataset: with a training pipeline.
        index: of an image in ``dataset``.

    Returns:
        (H, W, 3) uint8 RGB, the image as the pipeline made it.
    """
    data = dataset[index]
    image = data['inputs'].permute(1, 2, 0).numpy()[..., ::-1]
    with watched(detector.roi_head) as rankings, torch.no_grad():
        batch = detector.data_preprocessor(pseudo_collate([data]), training=True)
        detector(**batch, mode='loss')
    return draw_ranking(image, rankings[0][0])


def draw_ranking(image: np.ndarray, mining: Mining) -> np.ndarray:
    """Draw the RoIs that were chosen in an image.

    Foreground is blue, background orange, ground truth green. The harder a RoI, the
    stronger its lines; rank and loss stand at the hardest few and at the easiest.

    Args:
        image: (H, W, 3) uint8 RGB, the network's input.
        mining: of this image.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    chosen = mining.mined
    boxes, losses = mining.candidates.boxes[chosen].cpu(), mining.losses[chosen].cpu()
    is_foreground = (chosen < len(mining.candidates.pos_inds)).cpu()
    last = len(chosen) - 1
    texts = [
        f'{i + 1}: {_without_sign_of_zero(loss):.2g}'
        if i < NUM_TEXTS or i == last
        else ''
        for i, loss in enumerate(losses.tolist())
    ]
    strengths = losses / losses.max().clamp(min=1e-6) if len(losses) else losses
    groups = [Boxes(get_box_tensor(mining.candidates.gt_bboxes).cpu(), GROUND_TRUTH)]
    for colour, of_colour in (
        (BACKGROUND, ~is_foreground),
        (FOREGROUND, is_foreground),
    ):
        # The hardest on top.
        inds = of_colour.nonzero().flatten().flip(0)
        of_inds = [texts[i] for i in inds.tolist()]
        groups.append(Boxes(boxes[inds], colour, of_inds, strengths[inds]))
    return draw_boxes(image, groups)


def draw_detections(
    detector: TwoStageDetector, dataset: BaseDataset, index: int, score_thr: float = 0.5
) -> np.ndarray:
    """Draw a test image with its detections of ``score_thr`` or more, class and score
    beside them; ground truth is green, false positives are orange, with texts at the
    first of them.

    A detection is false if it overlaps no ground truth of its class by an IoU of 0.5,
    or only one that a detection of a higher score has taken. One on a difficult object
    is neither right nor false and left out.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    data = dataset[index]
    with torch.no_grad():
        sample = detector.test_step(pseudo_collate([data]))[0]
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    gt_bboxes = get_box_tensor(sample.gt_instances.bboxes).cpu()
    classes = dataset.metainfo['classes']
    found = sample.pred_instances.cpu()
    found = found[found.scores >= score_thr]
    is_right, is_false = judge(found, sample.gt_instances, sample.ignored_instances)
    right = detected_boxes(found[is_right], classes, score_thr)
    # By falling score; a detector that has learnt little has a hundred of them.
    false = detected_boxes(found[is_false], classes, score_thr, FALSE_POSITIVE)
    false.texts = [text if i < NUM_TEXTS else '' for i, text in enumerate(false.texts)]
    return draw_boxes(image, [Boxes(gt_bboxes, GROUND_TRUTH), right, false])


def judge(
    found: InstanceData, truth: InstanceData, ignored: InstanceData
) -> tuple[Tensor, Tensor]:
    """Which detections are right and which are false positives, by VOC's rule.

    MMDetection's `tpfp_default` does this for upright boxes alone.

    Args:
        found: D detections, with bboxes (D, 4) or (D, 5), see `box_iou`, scores and
            labels.
        truth: ground truth, with bboxes and labels.
        ignored: the same, of difficult objects and crowds.

    Returns:
        (D,) bool twice; a detection of what is ignored is neither. Where detections
        and ground truth are boxes of different kinds, none is called false.
    """
    right, false = torch.zeros(2, len(found), dtype=torch.bool)
    objects, others = (
        get_box_tensor(part.bboxes).cpu().float() for part in (truth, ignored)
    )
    numbers = found.bboxes.shape[1]
    if any(len(part) and part.shape[1] != numbers for part in (objects, others)):
        return ~right, false
    owners = torch.cat([part.reshape(-1, numbers) for part in (objects, others)])
    labels = torch.cat([truth.labels, ignored.labels]).cpu()
    overlaps = box_iou(found.bboxes.float(), owners)
    overlaps[found.labels[:, None] != labels] = 0
    # The last column stands for no object at all.
    overlaps = torch.cat([overlaps, torch.zeros(len(found), 1)], dim=1)
    best, owner_of = overlaps.max(dim=1)
    taken = set()
    for i in found.scores.argsort(descending=True, stable=True).tolist():
        owner = int(owner_of[i])
        if best[i] < FOUND_IOU or owner in taken:
            false[i] = True
        elif owner < len(objects):
            right[i] = True
            taken.add(owner)
    return right, false


@dataclass
class Boxes:
    """Boxes of one colour.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the image, or one of the kinds of
            `corners_of`.
        colour: RGB, 0 to 255.
        texts: N, written beside the boxes where not empty.
        strengths: (N,) from 0 (faint and thin) to 1.
    """

    boxes: Tensor
    colour: tuple[int, int, int]
    texts: Sequence[str] | None = None
    strengths: Tensor | None = None


def detected_boxes(
    found: InstanceData,
    classes: Sequence[str],
    score_thr: float,
    colour: tuple[int, int, int] = DETECTION,
) -> Boxes:
    """Detections of ``score_thr`` or more, to be drawn with class and score."""
    found = found[found.scores >= score_thr].cpu()
    texts = [
        f'{classes[label]} {score:.2f}'
        for label, score in zip(found.labels, found.scores, strict=True)
    ]
    return Boxes(found.bboxes, colour, texts)


def draw_boxes(image: np.ndarray, groups: list[Boxes]) -> np.ndarray:
    """Draw groups of boxes, the last on top.

    Texts hide no box of which the picture is (see `place_labels`): those with a text,
    and all of a group that has none. A line leads to a text that is not beside its box.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (H, W, 3) uint8 RGB, twice as wide or more where the image is small, and wider
        by a margin where a text finds no place in it.
    """
    zoom = max(1, round(MIN_WIDTH / image.shape[1]))
    width, height = image.shape[1] * zoom, image.shape[0] * zoom
    scale = max(1.0, min(width, height) / FONT_SIDE)
    polygons_of = [_polygons(group.boxes, zoom, (width, height)) for group in groups]
    labels, shown = _labels(groups, polygons_of)
    places, margin = place_labels(
        np.array([box for _, box, _ in labels]).reshape(-1, 4),
        np.array([text_size(t, scale * FONT_PX) for t, _, _ in labels]).reshape(-1, 2),
        shown,
        (width, height),
    )
    large = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    large = mmcv.impad(large, shape=(height, width + margin), pad_val=WHITE)
    visualizer = Visualizer(image=large)
    for group, polygons in zip(groups, polygons_of, strict=True):
        strengths = (
            torch.ones(len(polygons)) if group.strengths is None else group.strengths
        )
        for polygon, strength in zip(polygons, strengths.tolist(), strict=True):
            if len(polygon) == 0:
                continue
            visualizer.draw_polygons(
                polygon,
                edge_colors=group.colour,
                line_widths=scale * (1 + 2 * strength),
                alpha=0.3 + 0.7 * strength,
            )
    for (_, box, colour), place in zip(labels, places, strict=True):
        line = leader(box, place)
        if line is not None:
            xs, ys = torch.from_numpy(line).T
            visualizer.draw_lines(xs, ys, colors=colour, line_widths=scale)
    for (text, _, colour), place in zip(labels, places, strict=True):
        _write(visualizer, text, place, colour, scale * FONT_PX)
    return visualizer.get_image()


def _polygons(boxes: Tensor, zoom: float, size: tuple[int, int]) -> list[Tensor]:
    """Of each box what lies in the enlarged picture: (n, 2) corners, none outside."""
    polygons = corners_of(boxes.float()) * zoom
    limits = torch.tensor(size) - 1
    if boxes.shape[1] == 4:
        return list(polygons.clamp(min=0).minimum(limits))
    return [_inside(polygon, limits) for polygon in polygons]


def _inside(polygon: Tensor, limits: Tensor) -> Tensor:
    """The part (n, 2) of a turned box (4, 2) in the picture; a line beyond its edge
    would make the Visualizer's picture larger."""
    frame = corners_of(torch.cat([torch.zeros(2), limits])[None])[0]
    _, inside = cv2.intersectConvexConvex(polygon.numpy(), frame.numpy())
    if inside is None:
        return polygon[:0]
    return torch.from_numpy(inside).reshape(-1, 2)


def corners_of(boxes: Tensor) -> Tensor:
    """The corners of boxes in turn.

    Args:
        boxes: (N, 4) x1, y1, x2, y2; (N, 5) cx, cy, w, h, angle in radians, clockwise
            in the picture; or (N, 8), four corners.

    Returns:
        (N, 4, 2) x, y; those of a horizontal box from the upper left one clockwise.
    """
    if boxes.shape[1] == 8:
        return boxes.unflatten(1, (4, 2))
    if boxes.shape[1] == 4:
        x1, y1, x2, y2 = boxes.unbind(dim=1)
        return torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], dim=1).unflatten(1, (4, 2))
    centres, sides, angles = boxes[:, :2], boxes[:, 2:4], boxes[:, 4]
    cos, sin = angles.cos(), angles.sin()
    along = torch.stack([cos, sin], dim=1) * sides[:, :1] / 2
    across = torch.stack([-sin, cos], dim=1) * sides[:, 1:] / 2
    turns = [-along - across, along - across, along + across, across - along]
    return centres[:, None] + torch.stack(turns, dim=1)


def _labels(
    groups: list[Boxes], polygons_of: list[list[Tensor]]
) -> tuple[list[tuple[str, np.ndarray, tuple]], np.ndarray]:
    """(text, box, colour) of each text, and (M, 4) the boxes that it may not hide."""
    labels, shown = [], [np.zeros((0, 4))]
    for group, polygons in zip(groups, polygons_of, strict=True):
        texts = group.texts or [''] * len(polygons)
        for polygon, text in zip(polygons, texts, strict=True):
            if len(polygon) == 0:
                continue
            # Of a turned box what lies around it.
            box = torch.cat([polygon.amin(dim=0), polygon.amax(dim=0)]).numpy()
            if text:
                labels.append((text, box, group.colour))
            if text or not group.texts:
                shown.append(box[None])
    return labels, np.concatenate(shown)


def _write(
    visualizer: Visualizer, text: str, place: np.ndarray, colour: tuple, font_px: float
) -> None:
    visualizer.draw_texts(
        text,
        torch.from_numpy(place[None, :2] + PAD),
        font_sizes=font_px * 72 / visualizer.dpi,
        colors='white',
        bboxes=dict(
            facecolor=[c / 255 for c in colour], pad=PAD * 0.72, edgecolor='none'
        ),
    )


def _without_sign_of_zero(value: float) -> float:
    """A loss to two digits; 0 for -0.0 and for what rounding makes of it."""
    return round(value, 6) + 0.0


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """A picture (H, W, 3) with a line above it."""
    return np.vstack([_strip(image.shape[1], [(title, None)]), image])


def with_legend(image: np.ndarray, legend: dict[str, tuple]) -> np.ndarray:
    """A picture (H, W, 3) with the meanings of the colours below it."""
    return np.vstack([image, _strip(image.shape[1], list(legend.items()))])


def _strip(width: int, entries: list[tuple[str, tuple | None]]) -> np.ndarray:
    """(H, width, 3) uint8 RGB, white, with texts, each after a square of its colour."""
    font_px = 2 * FONT_PX
    height = 2 * font_px
    visualizer = Visualizer(image=np.full((height, width, 3), 255, np.uint8))
    x = font_px / 2
    for text, colour in entries:
        if colour is not None:
            square = torch.tensor([x, height / 4, x + font_px, 3 * height / 4])
            visualizer.draw_bboxes(square, edge_colors=colour, line_widths=4)
            x += 1.5 * font_px
        visualizer.draw_texts(
            text,
            torch.tensor([[x, height / 2]]),
            font_sizes=font_px * 72 / visualizer.dpi,
            colors='black',
            vertical_alignments='center',
            bboxes=dict(facecolor='none', edgecolor='none'),
        )
        x += text_size(text, font_px)[0] + 1.5 * font_px
    return visualizer.get_image()


def montage(images: list[np.ndarray], columns: int = 3) -> np.ndarray:
    """Put pictures (H, W, 3), of any sizes, on one sheet of ``columns`` columns."""
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    cells = [
        mmcv.impad(image, shape=(height, width), pad_val=WHITE) for image in images
    ]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return np.vstack(rows)
