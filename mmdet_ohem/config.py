"""Reading configs: those that are installed with the package, and what a part names."""

from collections.abc import Iterator
from pathlib import Path

import mmcv.ops
from mmengine.config import Config
from mmengine.utils import get_object_from_string

# Links in a checkout, files in a wheel; mim looks there too.
CONFIGS = Path(__file__).parent / '.mim' / 'configs'


def config_file(name: str) -> str:
    """The path of a config of this package, to inherit from.

    MMEngine's `_base_ = 'package::config'` takes OpenMMLab's own packages alone, but
    the value of `_base_` may be any expression that needs no name of the config:

        _base_ = __import__('mmdet_ohem').config_file('fast_rcnn_vgg16_ohem_voc07.py')

    Args:
        name: path below the folder `configs`.

    Raises:
        FileNotFoundError: there is no such config.
    """
    path = CONFIGS / name
    if not path.is_file():
        there = sorted(path.name for path in CONFIGS.glob('*.py'))
        raise FileNotFoundError(
            f'mmdet_ohem has no config {name!r} in {CONFIGS}; give one of '
            f'{", ".join(there) or "none: the folder is missing, install again"}.'
        )
    return str(path)


def type_name(part: dict) -> str:
    """The name, without scope or module, of the class that a part of a config asks for.

    A config asks by a string ('mmdet.Resize' or 'Resize') or, in pure Python, by the
    class itself.

    Returns:
        Such as 'Resize'; '' for a part without ``type``.
    """
    asked = part.get('type') or ''
    return getattr(asked, '__name__', None) or asked.rpartition('.')[2]


def is_type(part: dict, cls: type) -> bool:
    """Whether a part of a config asks for this very class, and not for one of the same
    name in another package.

    A string without a scope means MMDetection's class.
    """
    asked = part.get('type') or ''
    if not isinstance(asked, str):
        return asked is cls
    scope, dot, _ = asked.partition('.')
    return type_name(part) == cls.__name__ and (
        (scope if dot else 'mmdet') == cls.__module__.partition('.')[0]
    )


def file_text(config: Config) -> str:
    """The text of a config file with the same settings, classes by their names.

    MMEngine writes what a pure Python config imports by the path of the import, by
    which MMDetection does not find a RoI layer nor mmcv an NMS, and any other class as
    ``<class ...>``.

    Raises:
        ValueError: a class cannot be imported, so no file can name it.
    """
    settings = {key: _with_names(config[key]) for key in config.to_dict()}
    return Config(settings).pretty_text


def _with_names(part):
    if isinstance(part, dict):
        return {key: _with_names(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return type(part)(_with_names(value) for value in part)
    return _import_path(part) if callable(part) else part


def _import_path(part) -> str:
    name = part.__qualname__
    if getattr(mmcv.ops, name, None) is part:
        return name  # RoI layers and NMS go by this alone
    packages = part.__module__.split('.')
    # From the longest on: mmdet.models.losses.smooth_l1_loss is a function too.
    for length in range(len(packages), 0, -1):
        path = '.'.join([*packages[:length], name])
        if get_object_from_string(path) is part:
            return path
    raise ValueError(
        f'The config holds {part!r}, which cannot be imported from {part.__module__}: '
        'define it in a module of its own.'
    )


def as_list(part) -> list:
    """What may be one or several in a config: stages, schedulers, evaluators."""
    return list(part) if isinstance(part, (list, tuple)) else [part]


def rcnn_stages(model: dict) -> list[dict]:
    """``train_cfg.rcnn`` of a model's config, a dict for each stage of a cascade; an
    empty one where there is none."""
    stages = as_list((model.get('train_cfg') or {}).get('rcnn'))
    return [stage or {} for stage in stages]


def dicts_of(config) -> Iterator[dict]:
    """Every dict inside a config, itself included."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from dicts_of(value)


def inner_datasets(dataset: dict | None) -> Iterator[dict]:
    """The data sets inside MMEngine's wrappers (ConcatDataset, RepeatDataset, ...)."""
    if dataset is None:
        return
    inner = dataset.get('datasets') or [d for d in [dataset.get('dataset')] if d]
    if not inner:
        yield dataset
    for wrapped in inner:
        yield from inner_datasets(wrapped)
