"""What would spoil a run on a GPU, said before anything is built."""

import torch
from mmcv.ops import get_compiling_cuda_version
from mmengine.config import Config

from mmdet_ohem.config import dicts_of, type_name


def check_gpu(cfg: Config, loops: tuple[str, ...]) -> None:
    """Look for what a GPU cannot do for this config. Without a GPU nothing is checked.

    Args:
        cfg: as it will run, mixed precision included.
        loops: of 'train', 'val' and 'test'.

    Raises:
        ValueError: mmcv has no operator for the precision; it has none for GPUs at
            all, and detections will be needed; or results are to be deterministic,
            which the gradient of Caffe's RoI pooling is not.
    """
    if not torch.cuda.is_available():
        return
    if 'train' in loops:
        _check_precision(cfg)
        _check_deterministic(cfg)
    lacks_operators = get_compiling_cuda_version() == 'not available'
    if lacks_operators and 'val' in loops and cfg.get('val_cfg') is not None:
        raise ValueError(
            'mmcv was built without operators for GPUs, and the NMS of the validation '
            'is one: train without validation (--cfg-options val_cfg=None '
            'val_dataloader=None val_evaluator=None), or install an mmcv with CUDA '
            'operators (docs/install.md).'
        )
    if lacks_operators and 'test' in loops:
        raise ValueError(
            'mmcv was built without operators for GPUs, and NMS is one: test on the '
            'CPU, with CUDA_VISIBLE_DEVICES= before the command, or install an mmcv '
            'with CUDA operators (docs/install.md).'
        )


def _check_precision(cfg: Config) -> None:
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper) != 'AmpOptimWrapper':
        return
    if wrapper.get('dtype') not in ('bfloat16', torch.bfloat16):
        return
    for part in dicts_of(cfg.model):
        if part.get('roi_layer'):
            raise ValueError(
                f"optim_wrapper.dtype='bfloat16', but mmcv's "
                f'{type_name(part["roi_layer"])} has no bfloat16 on a GPU: set '
                "optim_wrapper.dtype='float16', or train without AMP."
            )


def _check_deterministic(cfg: Config) -> None:
    if not (cfg.get('randomness') or {}).get('deterministic'):
        return
    for part in dicts_of(cfg.model):
        if type_name(part) == 'RoIPoolExtractor':
            raise ValueError(
                'randomness.deterministic=True, but on a GPU the gradient of '
                'RoIPoolExtractor adds up in whatever order its threads arrive: leave '
                'it out, and expect two runs to agree but for rounding; or train on '
                'the CPU.'
            )
