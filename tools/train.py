"""Train a detector: python tools/train.py CONFIG [flags], as in MMDetection."""

import argparse
from pathlib import Path

import torch
from mmengine.runner import Runner

from mmdet_ohem.checkpoint import check_resumable, load_checked, newest_checkpoint
from mmdet_ohem.runs import (
    add_budget_argument,
    add_config_arguments,
    add_launcher_arguments,
    check_data,
    check_gpu,
    check_score_thr,
    errors_as_sentences,
    is_mmdets_ohem,
    load_config,
    lost_files_as_sentences,
    missing_operators_as_sentences,
    set_budget,
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
    add_budget_argument(parser)
    add_config_arguments(parser)
    add_launcher_arguments(parser)
    return parser.parse_args()


def find_checkpoint(name: str, work_dir: str) -> tuple[str | None, str]:
    """As `newest_checkpoint`, unless one is named."""
    if name == 'auto':
        return newest_checkpoint(work_dir)
    if not Path(name).is_file():
        raise FileNotFoundError(f'There is no checkpoint {name} to resume from.')
    check_resumable(name)
    return name, ''


def main() -> None:
    args = parse_args()
    with errors_as_sentences():
        cfg = load_config(args)
        if args.budget is not None:
            set_budget(cfg, args.budget)
        check_data(cfg, ('train', 'val'))
    if is_mmdets_ohem(cfg):
        print(
            "type='OHEMSampler' is MMDetection's sampler, another algorithm; for this "
            "package's write type='mmdet_ohem.OHEMSampler', or in pure Python `from "
            'mmdet_ohem import OHEMSampler`.'
        )
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
        with errors_as_sentences():
            checkpoint, why = find_checkpoint(args.resume, cfg.work_dir)
        if why:
            print(why)
        # Without a checkpoint to go on from, load_from of the config holds.
        if checkpoint is not None:
            cfg.resume, cfg.load_from = True, checkpoint
    elif cfg.get('load_from') and '://' not in cfg.load_from:
        with errors_as_sentences():
            load_checked(cfg.load_from)
    with errors_as_sentences():
        check_gpu(cfg, ('train', 'val'))
    check_score_thr(cfg, ('val',))
    with lost_files_as_sentences(cfg.work_dir), missing_operators_as_sentences():
        Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
