"""Train a detector: python tools/train.py CONFIG [flags], as in MMDetection."""

import argparse
from pathlib import Path

import torch
from mmengine.runner import Runner

from mmdet_ohem.check_data import check_data
from mmdet_ohem.launch import (
    add_config_arguments,
    add_launcher_arguments,
    load_config,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a detector.')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision, on a GPU'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the number of images per step',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from a checkpoint; the latest of the work dir if none is named',
    )
    add_config_arguments(parser)
    add_launcher_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_data(cfg, ('train', 'val'))
    if args.amp:
        if not torch.cuda.is_available():
            raise SystemExit(
                '--amp needs a CUDA GPU, and PyTorch sees none here; leave it out to '
                'train in float32.'
            )
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise SystemExit(
                f'--auto-scale-lr needs auto_scale_lr.base_batch_size in {args.config}:'
                ' the number of images per step that its learning rate belongs to.'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume:
        if args.resume != 'auto' and not Path(args.resume).is_file():
            raise SystemExit(f'There is no checkpoint {args.resume} to resume from.')
        # Without a checkpoint to go on from, load_from of the config holds.
        if args.resume != 'auto':
            cfg.resume, cfg.load_from = True, args.resume
        elif (Path(cfg.work_dir) / 'last_checkpoint').exists():
            cfg.resume, cfg.load_from = True, None
    Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
