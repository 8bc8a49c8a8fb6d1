"""The configs that are installed with the package, for configs elsewhere."""

from pathlib import Path

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
