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

from mmdet_ohem.ohem_sampler import Mining
from mmdet_ohem.watch import watched

# RGB from Okabe and Ito's palette, which colour-blind readers can tell apart.
GROUND_TRUTH = (0, 158, 115)
FOREGROUND = (0, 114, 178)
BACKGROUND = (213, 94, 0)
DETECTION = (204, 121, 167)
# Small images are drawn larger, for legible text.
MIN_WIDTH = 640
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
        f'{i + 1}: {loss:.2g}' if i < NUM_TEXTS or i == last else ''
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
    beside them; ground truth is green.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    data = dataset[index]
    with torch.no_grad():
        sample = detector.test_step(pseudo_collate([data]))[0]
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    gt_bboxes = get_box_tensor(sample.gt_instances.bboxes)
    classes = dataset.metainfo['classes']
    found = detected_boxes(sample.pred_instances, classes, score_thr)
    return draw_boxes(image, [Boxes(gt_bboxes, GROUND_TRUTH), found])


@dataclass
class Boxes:
    """Boxes of one colour.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the image.
        colour: RGB, 0 to 255.
        texts: N, written at the upper left corner where not empty.
        strengths: (N,) from 0 (faint and thin) to 1.
    """

    boxes: Tensor
    colour: tuple[int, int, int]
    texts: Sequence[str] | None = None
    strengths: Tensor | None = None


def detected_boxes(
    found: InstanceData, classes: Sequence[str], score_thr: float
) -> Boxes:
    """Detections of ``score_thr`` or more, to be drawn with class and score."""
    found = found[found.scores >= score_thr].cpu()
    texts = [
        f'{classes[label]} {score:.2f}'
        for label, score in zip(found.labels, found.scores, strict=True)
    ]
    return Boxes(found.bboxes, DETECTION, texts)


def draw_boxes(image: np.ndarray, groups: list[Boxes]) -> np.ndarray:
    """Draw groups of boxes, the last on top.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (H, W, 3) uint8 RGB, twice as wide or more where the image is small.
    """
    zoom = max(1, round(MIN_WIDTH / image.shape[1]))
    width, height = image.shape[1] * zoom, image.shape[0] * zoom
    visualizer = Visualizer(
        image=cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    )
    limits = torch.tensor([width, height, width, height]) - 1
    for group in groups:
        boxes = (group.boxes.float() * zoom).clamp(min=0).minimum(limits)
        texts = group.texts or [''] * len(boxes)
        strengths = (
            torch.ones(len(boxes)) if group.strengths is None else group.strengths
        )
        for box, text, strength in zip(boxes, texts, strengths.tolist(), strict=True):
            visualizer.draw_bboxes(
                box,
                edge_colors=group.colour,
                line_widths=1 + 2 * strength,
                alpha=0.3 + 0.7 * strength,
            )
            if text:
                _write(visualizer, text, box[None, :2], group.colour)
    return visualizer.get_image()


def _write(visualizer: Visualizer, text: str, position: Tensor, colour: tuple) -> None:
    visualizer.draw_texts(
        text,
        position,
        font_sizes=9,
        colors='white',
        bboxes=dict(facecolor=[c / 255 for c in colour], pad=1, edgecolor='none'),
    )


def montage(images: list[np.ndarray], columns: int = 3) -> np.ndarray:
    """Put pictures (H, W, 3), of any sizes, on one sheet of ``columns`` columns."""
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    cells = [mmcv.impad(image, shape=(height, width), pad_val=255) for image in images]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return np.vstack(rows)
