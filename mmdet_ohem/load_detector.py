"""A trained detector from a config and a checkpoint, which must fit each other."""

import os

from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from torch import nn

from mmdet_ohem.check_data import inner_datasets


def load_detector(
    config: Config, checkpoint: str | os.PathLike, device: str = 'cpu'
) -> BaseDetector:
    """Build the detector of a config with trained weights, for looking at pictures.

    MMDetection's `init_detector` loads what fits of a checkpoint and warns of the rest,
    and takes COCO's class names where the checkpoint has none.

    Returns:
        The detector in eval mode; ``dataset_meta`` is that of the config's test set.

    Raises:
        ValueError: the file is no checkpoint, or one of another config; or there is no
            such device.
    """
    init_default_scope('mmdet')
    detector = MODELS.build(config.model)
    meta = load_weights(detector, checkpoint).get('meta', {})
    # Its metainfo alone: neither images, nor lists, nor proposals need be there.
    dataset = next(inner_datasets(config.test_dataloader.dataset))
    dataset = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
    detector.dataset_meta = dataset.metainfo
    expected = detector.dataset_meta['classes']
    classes = meta.get('dataset_meta', {}).get('classes', expected)
    if tuple(classes) != tuple(expected):
        raise ValueError(
            f'{checkpoint} was trained on other classes ({", ".join(classes)}) than '
            f"the config's ({', '.join(expected)}): give the config that it was "
            'trained with.'
        )
    try:
        return detector.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'The device {device} is not there: {error}') from error


def load_weights(detector: nn.Module, checkpoint: str | os.PathLike) -> dict:
    """Load all weights of a detector; returns the checkpoint.

    Raises:
        ValueError: as in `load_detector`.
    """
    try:
        loaded = CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu')
    # PyTorch raises whatever its parser trips over in a broken file.
    except Exception as error:
        raise ValueError(
            f'{checkpoint} cannot be read as a checkpoint ({type(error).__name__}): '
            'give the .pth file that a training wrote.'
        ) from error
    try:
        detector.load_state_dict(loaded.get('state_dict', loaded))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(
            f'{checkpoint} does not fit the config, its layers are others: give the '
            'config that it was trained with.'
        ) from error
    return loaded
