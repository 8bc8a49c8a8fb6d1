"""A config in MMEngine's pure Python: classes in place of their names."""

import re
from pathlib import Path

import mmcv.ops
import mmdet.registry
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import Registry, init_default_scope

REGISTRIES = [
    value
    for value in vars(mmdet.registry).values()
    if isinstance(value, Registry) and value.scope == 'mmdet'
]


def class_of(name: str):
    """What a string of a config stands for: of a registry, or of mmcv's operators."""
    if hasattr(mmcv.ops, name):
        return getattr(mmcv.ops, name)
    # Some names are in several registries; those of networks come first.
    for registry in [MODELS, *REGISTRIES]:
        if found := registry.get(name):
            return found
    raise KeyError(name)


def with_classes(part):
    """A copy of a config's part that holds the classes themselves."""
    if isinstance(part, dict):
        copied = {key: with_classes(value) for key, value in part.items()}
        is_asking = isinstance(part.get('type'), str)
        return dict(copied, type=class_of(part['type'])) if is_asking else copied
    if isinstance(part, (list, tuple)):
        return type(part)(with_classes(value) for value in part)
    return part


def write_pure_python(path: Path, config: Config) -> Path:
    """A file of the same config that imports what it names."""
    init_default_scope('mmdet')
    imports = set()

    def imported(match: re.Match) -> str:
        found = class_of(match.group(1))
        imports.add(f'from {found.__module__} import {found.__name__}\n')
        return f'type={found.__name__}'

    text = re.sub(r"type='([\w.]+)'", imported, config.pretty_text)
    path.write_text(''.join(sorted(imports)) + text)
    return path
