"""A trained detector on anybody's pictures: no data set, no proposal store."""

import glob
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from mmdet_ohem.check_data import inner_datasets
from mmdet_ohem.image_folder import IMAGE_SUFFIXES
from mmdet_ohem.load_detector import load_detector
from mmdet_ohem.pictures import detected_boxes, draw_boxes
from mmdet_ohem.proposal_files import clean_boxes
from mmdet_ohem.proposal_store import write_store
from mmdet_ohem.selective_search import search_in_order
from mmdet_ohem.whole_file import whole_file

STORE_STEP = 'LoadStoredProposals'


def find_pictures(names: Iterable[str]) -> list[Path]:
    """Files as they are; of a folder its images; of a pattern (*.jpg) what it matches.

    Raises:
        ValueError: there is no such file, or nothing in the folder or of the pattern.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
        elif path.exists():
            files = [path]
        else:
            matches = map(Path, glob.glob(name, recursive=True))
            files = [path for path in matches if path.is_file()]
        if not files:
            what = 'has no picture in it' if path.is_dir() else 'is not there'
            raise ValueError(f'{name} {what}: give pictures, folders or patterns.')
        found |= dict.fromkeys(sorted(files))
    return list(found)


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
        self._steps = [step for step in steps if 'Annotations' not in str(step['type'])]
        self.needs_boxes = any(STORE_STEP in str(step['type']) for step in self._steps)
        if 'roi_head' in config.model and not (
            self.needs_boxes or 'rpn_head' in config.model
        ):
            raise ValueError(
                f'{config.filename} has neither model.rpn_head nor a step '
                f'mmdet_ohem.{STORE_STEP} in test_dataloader.dataset.pipeline, whose '
                'place Selective Search could take: its RoI head gets no proposals.'
            )
        self.detector = load_detector(config, checkpoint, device)

    def run(
        self, paths: list[Path]
    ) -> Iterator[tuple[np.ndarray, InstanceData] | None]:
        """Detect in one picture after the other.

        Yields:
            For each picture, in order, its image (H, W, 3) uint8 RGB and the
            detections on the CPU: bboxes (N, 4) in px of the image, scores and labels;
            or None for what cannot be read as an image.
        """
        boxes = search_in_order(paths) if self.needs_boxes else [()] * len(paths)
        for path, of_path in zip(paths, boxes, strict=True):
            image = None if of_path is None else _read(path)
            yield None if image is None else (image, self._detect(path, image, of_path))

    def _detect(self, path: Path, image: np.ndarray, boxes) -> InstanceData:
        size = image.shape[1::-1]
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            steps = self._steps
            if self.needs_boxes:
                records = [(path.stem, clean_boxes(boxes, size), size)]
                write_store(Path(folder, 'store'), records, 'Selective Search')
                steps = [
                    dict(step, store=f'{folder}/store') if 'store' in step else step
                    for step in steps
                ]
            data = Compose(steps)(dict(img_path=str(path), img_id=path.stem))
            sample = self.detector.test_step(pseudo_collate([data]))[0]
        return sample.pred_instances.cpu()


def _read(path: Path) -> np.ndarray | None:
    try:
        image = mmcv.imread(path)
    except (OSError, cv2.error):  # of an empty file
        return None
    return None if image is None else mmcv.bgr2rgb(image)


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
        image, found = result
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
