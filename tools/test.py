"""Evaluate a detector: python tools/test.py CONFIG CHECKPOINT, as in MMDetection."""

import argparse
from pathlib import Path

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmengine.config import ConfigDict
from mmengine.runner import Runner

from mmdet_ohem.check_data import check_data
from mmdet_ohem.launch import (
    add_config_arguments,
    add_launcher_arguments,
    load_config,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evaluate a detector.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, a path or a URL')
    parser.add_argument('--out', help='write the detections to this .pkl file')
    parser.add_argument(
        '--show', action='store_true', help='show the detections in a window'
    )
    parser.add_argument(
        '--show-dir',
        help="write pictures of the detections to this folder in the work dir's folder "
        'of this run',
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds a picture is shown'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation with the config's tta_model and tta_pipeline",
    )
    add_config_arguments(parser)
    add_launcher_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_data(cfg, ('test',))
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        raise SystemExit(f'There is no checkpoint {args.checkpoint}.')
    if args.out and Path(args.out).suffix not in ('.pkl', '.pickle'):
        raise SystemExit(f'--out takes a .pkl file, not {args.out}.')
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        if not {'tta_model', 'tta_pipeline'} <= set(cfg):
            raise SystemExit(
                f'--tta needs tta_model and tta_pipeline in {args.config}; proposals '
                'must be read after the flip, so there is no default.'
            )
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    runner = Runner.from_cfg(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


if __name__ == '__main__':
    main()
