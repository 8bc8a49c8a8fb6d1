"""Pictures of what a detector finds, and of the RoIs that OHEM mines for it."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import mmcv
import numpy as np
import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.task_modules import SamplingResult
from mmdet.structures.bbox import get_box_tensor
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.visualization import Visualizer
from torch import Tensor

# RGB from Okabe and Ito's palette, which colour-blind readers can tell apart.
GROUND_TRUTH = (0, 158, 115)
FOREGROUND = (0, 114, 178)
BACKGROUND = (213, 94, 0)
DETECTION = (204, 121, 167)
# Small images are drawn larger, for legible text.
MIN_WIDTH = 640


def draw_mined(
    detector: TwoStageDetector, dataset: BaseDataset, index: int, num_texts: int = 8
) -> np.ndarray:
    """Draw the RoIs that the detector's OHEMSampler mines in a training image.

    Foreground is blue, background orange, ground truth green. The harder a RoI, the
    stronger its lines; the loss that ranked it stands at the hardest ``num_texts``.

    Args:
        detector: with an `mmdet_ohem.OHEMSampler` in its RoI head; in eval mode.
        dataset: with a training pipeline.
        index: of an image in ``dataset``.
        num_texts: how many RoIs get their loss written.

    Returns:
        (H, W, 3) uint8 RGB, the image as the pipeline made it.
    """
    data = dataset[index]
    image = data['inputs'].permute(1, 2, 0).numpy()[..., ::-1]
    gt_bboxes = get_box_tensor(data['data_samples'].gt_instances.bboxes)
    sampler = detector.roi_head.bbox_sampler
    # A cascade has one for each stage: its first sees the proposals.
    sampler = sampler[0] if isinstance(sampler, list) else sampler
    with _recorded(sampler) as results, torch.no_grad():
        batch = detector.data_preprocessor(pseudo_collate([data]), training=True)
        detector(**batch, mode='loss')
    mined = results[0]
    boxes, losses = get_box_tensor(mined.priors).cpu(), mined.losses.cpu()
    texts = [''] * len(losses)
    for i in losses.argsort(descending=True)[:num_texts].tolist():
        texts[i] = f'{losses[i]:.2g}'
    strengths = losses / losses.max().clamp(min=1e-6) if len(losses) else losses
    num_pos = len(mined.pos_inds)
    foreground, background = slice(num_pos), slice(num_pos, None)
    groups = [
        Boxes(gt_bboxes, GROUND_TRUTH),
        Boxes(boxes[background], BACKGROUND, texts[background], strengths[background]),
        Boxes(boxes[foreground], FOREGROUND, texts[foreground], strengths[foreground]),
    ]
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
    found = sample.pred_instances[sample.pred_instances.scores >= score_thr].cpu()
    classes = dataset.metainfo['classes']
    texts = [
        f'{classes[label]} {score:.2f}'
        for label, score in zip(found.labels, found.scores, strict=True)
    ]
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    gt_bboxes = get_box_tensor(sample.gt_instances.bboxes)
    groups = [Boxes(gt_bboxes, GROUND_TRUTH), Boxes(found.bboxes, DETECTION, texts)]
    return draw_boxes(image, groups)


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


@contextmanager
def _recorded(sampler):
    """The SamplingResults that a sampler returns while the context is open."""
    results: list[SamplingResult] = []
    sample = sampler.sample

    def record(*args, **kwargs) -> SamplingResult:
        results.append(sample(*args, **kwargs))
        return results[-1]

    sampler.sample = record
    try:
        yield results
    finally:
        del sampler.sample  # the method of the class shows again
