"""The frozen pass of offline bootstrapping: the background of each training image that
a detector gets most wrong.

R-CNN (Girshick et al., CVPR 2014) takes for background what overlaps every object by an
IoU below 0.3. DPM (Felzenszwalb et al., PAMI 2010) keeps a bounded set of examples that
easy ones leave and hard ones join. Here the set of an image is made anew in each pass.

Letters for shapes:
    K: boxes of an image that are kept
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from mmdet_ohem.config import dicts_of, type_name
from mmdet_ohem.mining import watched
from mmdet_ohem.proposals import write_store
from mmdet_ohem.runs import load_detector

BACKGROUND_IOU = 0.3


def write_active_set(
    config: Config,
    checkpoint: str | os.PathLike,
    store: str | os.PathLike,
    num: int,
    progress: Callable[[Iterable], Iterable],
) -> None:
    """Write a store of what each training image is to be trained on.

    Args:
        config: of the detector, which reads stored proposals. All of them are scored.
        checkpoint: its weights.
        store: gets the foreground proposals of each image, and of the background with
            an IoU below 0.3 with every object the ``num`` with the highest loss.
        progress: wraps an iterable to show how far it is.
    """
    detector = load_detector(config, checkpoint)
    dataset = DATASETS.build(_without_flips(config.train_dataloader.dataset))
    records = _records(detector, progress(range(len(dataset))), dataset, num)
    write_store(store, records, 'foreground and hard background', overwrite=True)


def _without_flips(dataset: dict) -> dict:
    """A data set whose images come as the file has them, but for their size."""
    dataset = copy.deepcopy(dataset)
    for part in dicts_of(dataset):
        if 'pipeline' in part:
            steps = part['pipeline']
            part['pipeline'] = [s for s in steps if type_name(s) != 'RandomFlip']
    return dataset


def _records(
    detector: TwoStageDetector, indices: Iterable[int], dataset, num: int
) -> Iterator[tuple[str, np.ndarray, tuple[int, int]]]:
    for i in indices:
        data = dataset[i]
        sample = data['data_samples']
        boxes = active_boxes(detector, data, num) / np.tile(sample.scale_factor, 2)
        yield Path(sample.img_path).stem, boxes, sample.ori_shape[::-1]


@torch.no_grad()
def active_boxes(detector: TwoStageDetector, data: dict, num: int) -> np.ndarray:
    """The foreground proposals of an image, and ``num`` of its background.

    Args:
        detector: in eval mode.
        data: of a training set.

    Returns:
        (K, 4) float32, in px of the network's input. The ground truth is not among
        them, for every sampler adds it.
    """
    batch = detector.data_preprocessor(pseudo_collate([data]), training=True)
    with watched(detector.roi_head) as rankings:
        detector(**batch, mode='loss')
    mining = rankings[0][0]
    candidates, num_pos = mining.candidates, len(mining.candidates.pos_inds)
    foreground = (candidates.gt_flags[candidates.pos_inds] == 0).nonzero()[:, 0]
    overlaps = candidates.assign_result.max_overlaps[candidates.neg_inds]
    background = num_pos + (overlaps < BACKGROUND_IOU).nonzero()[:, 0]
    hardest = mining.losses[background].argsort(descending=True, stable=True)[:num]
    kept = torch.cat([foreground, background[hardest]])
    return candidates.boxes[kept].cpu().numpy()
