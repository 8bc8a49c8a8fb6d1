"""Online Hard Example Mining (CVPR 2016) for MMDetection 3."""

__version__ = '0.1.0'


def _check_mmcv() -> None:
    """Say in one sentence what is wrong with mmcv.

    RuntimeError, not ImportError: MMEngine swallows an ImportError of
    `mmdet_ohem.registry`, and the user would only read that the sampler is 'not in the
    registry'.
    """
    from importlib.metadata import PackageNotFoundError, version

    wanted = (
        'mmdet_ohem needs mmcv 2.0.0 or newer, below 2.2.0, with compiled operators '
        '(see Installation in the README), but '
    )
    try:
        mmcv_version = version('mmcv')
    except PackageNotFoundError:
        try:
            version('mmcv-lite')
        except PackageNotFoundError:
            raise RuntimeError(wanted + 'mmcv is not installed.') from None
        raise RuntimeError(
            wanted + 'mmcv-lite is installed, which has no operators.'
        ) from None
    from mmengine.utils import digit_version

    if (
        not digit_version('2.0.0')
        <= digit_version(mmcv_version)
        < digit_version('2.2.0')
    ):
        raise RuntimeError(wanted + f'mmcv {mmcv_version} is installed.')
    try:
        import mmcv.ops  # noqa: F401
    except (ImportError, OSError) as error:
        raise RuntimeError(
            wanted + f'the operators of mmcv {mmcv_version} cannot be loaded ({error}).'
        ) from error


_check_mmcv()

from mmdet_ohem.checkpoint import allow_mmengine_checkpoints  # noqa: E402
from mmdet_ohem.mining import select_hard_rois  # noqa: E402
from mmdet_ohem.ohem_loss import OHEMLoss  # noqa: E402
from mmdet_ohem.ohem_sampler import OHEMSampler  # noqa: E402

allow_mmengine_checkpoints()

__all__ = ['OHEMLoss', 'OHEMSampler', 'select_hard_rois', '__version__']
