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

    installed = {}
    for name in ('mmcv', 'onedl-mmcv', 'mmcv-lite', 'mmdet', 'onedl-mmdetection'):
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    # MMDetection 3.3 stops below mmcv 2.2; its fork takes any that is newer.
    is_fork = 'onedl-mmdetection' in installed and 'mmdet' not in installed
    for name in ('mmdet', 'onedl-mmdetection'):
        installed.pop(name, None)
    wanted = (
        'mmdet_ohem needs mmcv 2.0.0 or newer, '
        + ('' if is_fork else 'below 2.2.0 for the MMDetection that is installed, ')
        + 'with compiled operators (see Installation in the README), but '
    )
    if not installed:
        raise RuntimeError(wanted + 'mmcv is not installed.')
    if list(installed) == ['mmcv-lite']:
        raise RuntimeError(wanted + 'mmcv-lite is installed, which has no operators.')
    from mmengine.utils import digit_version

    name, mmcv_version = next(iter(installed.items()))
    is_old = digit_version(mmcv_version) < digit_version('2.0.0')
    is_new = digit_version(mmcv_version) >= digit_version('2.2.0')
    if is_old or (is_new and name == 'mmcv' and not is_fork):
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
from mmdet_ohem.config import config_file  # noqa: E402
from mmdet_ohem.mining import OHEMLoss, OHEMSampler, select_hard_rois  # noqa: E402

allow_mmengine_checkpoints()

__all__ = ['OHEMLoss', 'OHEMSampler', 'config_file', 'select_hard_rois', '__version__']
