"""A trained detector from a config and a checkpoint, which must fit each other."""

import os

from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from mmdet_ohem.checkpoint import load_checked
from mmdet_ohem.config import inner_datasets
from mmdet_ohem.runs.publish import published_files


def load_detector(
    config: Config | str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    device: str = 'cpu',
) -> BaseDetector:
    """Build the detector of a config with trained weights, for looking at pictures.

    MMDetection's `init_detector` loads what fits of a checkpoint and warns of the rest,
    and takes COCO's class names where the checkpoint has none.

    Args:
        config: of the detector; or the folder that `publish` wrote of it, which has the
            checkpoint too.
        checkpoint: its weights.
        device: as PyTorch names it.

    Returns:
        The detector in eval mode; ``dataset_meta`` is that of the config's test set.

    Raises:
        ValueError: the file is no checkpoint, or one of another config; or there is no
            such device.
    """
    if not isinstance(config, Config):
        config, checkpoint = published_files(config)
    init_default_scope(config.get('default_scope') or 'mmdet')
    detector = MODELS.build(config.model)
    meta = load_weights(detector, checkpoint).get('meta', {})
    detector.dataset_meta = test_metainfo(config)
    expected = detector.dataset_meta['classes']
    classes = meta.get('dataset_meta', {}).get('classes', expected)
    if tuple(classes) != tuple(expected):
        raise ValueError(
            f'{checkpoint} was trained on other classes ({", ".join(classes)}) than '
            f"the config's ({', '.join(expected)}): give the config that it was "
            'trained with.'
        )
    return to_device(detector, device).eval()


def to_device(detector: BaseDetector, device: str) -> BaseDetector:
    """Move a detector.

    Raises:
        ValueError: there is no such device.
    """
    try:
        return detector.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'The device {device} is not there: {error}') from error


def test_metainfo(config: Config) -> dict:
    """The ``metainfo`` of a config's test set, of which neither images, nor lists, nor
    proposals need be there."""
    dataset = next(inner_datasets(config.test_dataloader.dataset))
    return DATASETS.build(dict(dataset, pipeline=[], lazy_init=True)).metainfo


def load_weights(detector: nn.Module, checkpoint: str | os.PathLike) -> dict:
    """Load all weights of a detector; returns the checkpoint.

    Raises:
        ValueError: as in `load_detector`.
    """
    loaded = load_checked(checkpoint)
    try:
        detector.load_state_dict(loaded.get('state_dict', loaded))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(
            f'{checkpoint} does not fit the config, its layers are others: give the '
            'config that it was trained with.'
        ) from error
    return loaded
