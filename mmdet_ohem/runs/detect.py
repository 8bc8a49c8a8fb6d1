"""A trained detector on anybody's pictures: no data set, no proposal store."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from mmdet_ohem.config import inner_datasets, type_name
from mmdet_ohem.datasets import IMAGE_SUFFIXES, STORE_STEP, read_image
from mmdet_ohem.proposals import clean_boxes, search_in_order
from mmdet_ohem.runs.detector import load_detector
from mmdet_ohem.visualization import detected_boxes, draw_boxes
from mmdet_ohem.whole_file import whole_file


class Detected(NamedTuple):
    """A picture and what was found in it.

    Args:
        image: (H, W, 3) uint8 RGB.
        found: the detections on the CPU, bboxes (N, 4) in px of the image, scores and
            labels.
        proposals: (R, 4) in px of the image, of Selective Search; None if the detector
            makes its own.
    """

    image: np.ndarray
    found: InstanceData
    proposals: np.ndarray | None


class _BoxesAtHand:
    """What a pipeline has in place of a `ProposalStore`: the boxes of one picture."""

    path = 'Selective Search'
    found: tuple[np.ndarray, tuple[int, int]]

    def __contains__(self, img_id) -> bool:
        return True

    def get(self, img_id) -> tuple[np.ndarray, tuple[int, int]]:
        return self.found


class PictureDetector:
    """Detections on pictures of any kind.

    A detector without RPN gets boxes of Selective Search (fast mode, cleaned as
    prepare_proposals.py does) in place of its store's.

    Args:
        config: of the detector; its test pipeline is what pictures go through.
        checkpoint: its weights.
        device: as PyTorch names it.

    Raises:
        ValueError: the config has no RoI head (nor the head of a one-stage detector),
            or nothing that gives it proposals; or see `load_detector`.
    """

    def __init__(
        self, config: Config, checkpoint: str | os.PathLike, device: str = 'cpu'
    ) -> None:
        if not {'roi_head', 'bbox_head'} & set(config.get('model') or {}):
            raise ValueError(
                f'{config.filename} has no model.roi_head, so it detects nothing: '
                'give the config of a detector.'
            )
        if not config.get('test_dataloader'):
            raise ValueError(
                f'{config.filename} has no test_dataloader, whose pipeline pictures '
                'could go through.'
            )
        steps = next(inner_datasets(config.test_dataloader.dataset)).pipeline
        # A picture of nobody's data set has no annotations.
        steps = [step for step in steps if 'Annotations' not in type_name(step)]
        self.needs_boxes = any(type_name(step) == STORE_STEP for step in steps)
        if 'roi_head' in config.model and not (
            self.needs_boxes or 'rpn_head' in config.model
        ):
            raise ValueError(
                f'{config.filename} has neither model.rpn_head nor a step '
                f'mmdet_ohem.{STORE_STEP} in test_dataloader.dataset.pipeline, whose '
                'place Selective Search could take: its RoI head gets no proposals.'
            )
        self.detector = load_detector(config, checkpoint, device)
        self._boxes = _BoxesAtHand()
        self._pipeline = Compose(
            [
                dict(step, store=self._boxes) if 'store' in step else step
                for step in steps
            ]
        )

    def run(
        self, paths: Sequence[str | os.PathLike], workers: int | None = None
    ) -> Iterator[Detected | None]:
        """Detect in one picture after the other.

        Args:
            workers: processes of Selective Search; all cores if left out.

        Yields:
            For each picture, in order, what was found; or None for what cannot be read
            as an image.
        """
        searched = repeat((), len(paths))
        if self.needs_boxes:
            searched = search_in_order(paths, workers)
        for path, boxes in zip(map(Path, paths), searched, strict=True):
            image = None if boxes is None else read_image(path)
            if image is None:
                yield None
                continue
            if self.needs_boxes:
                boxes = clean_boxes(boxes, image.shape[1::-1])
            found = self._detect(path, image.shape[1::-1], boxes)
            proposals = boxes if self.needs_boxes else None
            yield Detected(mmcv.bgr2rgb(image), found, proposals)

    def _detect(self, path: Path, size: tuple[int, int], boxes) -> InstanceData:
        data = dict(img_path=str(path), img_id=path.stem)
        if self.needs_boxes:
            self._boxes.found = boxes, size
        data = self._pipeline(data)
        with torch.no_grad():
            sample = self.detector.test_step(pseudo_collate([data]))[0]
        return sample.pred_instances.cpu()


def detect_pictures(
    detector: PictureDetector,
    paths: list[Path],
    folder: str | os.PathLike,
    score_thr: float,
    progress: Callable[[Iterable, int], Iterable],
) -> list[Path]:
    """Write detections of pictures, each as soon as it is there.

    ``folder`` gets ``vis/NAME``, the picture with detections of ``score_thr`` or more,
    and ``preds/NAME.json``, all of them. NAME has the folders below the one that all
    pictures have in common.

    Args:
        progress: wraps what gives the number of values that comes second.

    Returns:
        The files that cannot be read as an image.
    """
    # Not Path.absolute(), which keeps `..`.
    root = os.path.commonpath([os.path.dirname(os.path.abspath(p)) for p in paths])
    classes = detector.detector.dataset_meta['classes']
    skipped = []
    results = progress(detector.run(paths), len(paths))
    for path, result in zip(paths, results, strict=True):
        if result is None:
            skipped.append(path)
            continue
        name = os.path.relpath(path, root)
        image, found, _ = result
        picture = draw_boxes(image, [detected_boxes(found, classes, score_thr)])
        drawn = Path(folder, 'vis', name)
        if drawn.suffix.lower() not in IMAGE_SUFFIXES:
            drawn = drawn.with_name(f'{drawn.name}.png')
        with whole_file(drawn) as partial:
            mmcv.imwrite(picture[..., ::-1], str(partial))
        labels = found.labels.tolist()
        detections = dict(
            image=str(path),
            width=image.shape[1],
            height=image.shape[0],
            labels=labels,
            names=[classes[label] for label in labels],
            scores=[round(score, 4) for score in found.scores.tolist()],
            bboxes=[[round(x, 1) for x in box] for box in found.bboxes.tolist()],
        )
        with whole_file(Path(folder, 'preds', f'{name}.json')) as partial:
            partial.write_text(json.dumps(detections))
    return skipped
