"""Online Hard Example Mining (CVPR 2016) for MMDetection 3."""

__version__ = '0.1.0'


def _check_mmcv() -> None:
    """Say in one sentence what is wrong with mmcv.

    RuntimeError, not ImportError: MMEngine swallows an ImportError of
    `mmdet_ohem.registry`, and the user would only read that the sampler is 'not in the
    registry'.
    """
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, version

    wanted = (
        'mmdet_ohem needs mmcv 2.0.0 or newer, below 2.2.0, with compiled operators '
        '(see Installation in the README), but '
    )
    installed = {}
    for name in ('mmcv', 'onedl-mmcv', 'mmcv-lite'):
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    if not installed:
        raise RuntimeError(wanted + 'mmcv is not installed.')
    if list(installed) == ['mmcv-lite']:
        raise RuntimeError(wanted + 'mmcv-lite is installed, which has no operators.')
    from mmengine.utils import digit_version

    # The bounds are MMDetection 3.3's; its fork, for which onedl-mmcv is, has none.
    name, mmcv_version = next(iter(installed.items()))
    fits = (
        digit_version('2.0.0') <= digit_version(mmcv_version) < digit_version('2.2.0')
    )
    if name == 'mmcv' and not fits:
        raise RuntimeError(wanted + f'mmcv {mmcv_version} is installed.')
    try:
        import mmcv.ops  # noqa: F401
    except (ImportError, OSError) as error:
        raise RuntimeError(
            f'{wanted}the operators of {name} {mmcv_version} cannot be loaded '
            f'({error}).'
        ) from error


_check_mmcv()

from mmdet_ohem.checkpoint import allow_mmengine_checkpoints  # noqa: E402
from mmdet_ohem.config_files import config_file  # noqa: E402
from mmdet_ohem.mining import select_hard_rois  # noqa: E402
from mmdet_ohem.ohem_loss import OHEMLoss  # noqa: E402
from mmdet_ohem.ohem_sampler import OHEMSampler  # noqa: E402

allow_mmengine_checkpoints()

__all__ = ['OHEMLoss', 'OHEMSampler', 'config_file', 'select_hard_rois', '__version__']
