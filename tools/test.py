"""Evaluate a detector: python tools/test.py CONFIG CHECKPOINT, as in MMDetection."""

import argparse
from pathlib import Path

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmengine.fileio import dump
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmdet_ohem.checkpoint import load_checked
from mmdet_ohem.runs import (
    add_background,
    add_background_arguments,
    add_config_arguments,
    add_launcher_arguments,
    check_data,
    check_gpu,
    check_score_thr,
    errors_as_sentences,
    load_config,
    lost_files_as_sentences,
    missing_operators_as_sentences,
    run_test,
)
from mmdet_ohem.whole_file import whole_file


class DumpWhole(DumpDetResults):
    """MMDetection's, whose file is there whole or not at all."""

    def compute_metrics(self, results: list) -> dict:
        with whole_file(self.out_file_path) as partial:
            dump(results, partial)
        print_log(f'Wrote the detections to {self.out_file_path}.', logger='current')
        return {}


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
    add_background_arguments(parser)
    add_config_arguments(parser)
    add_launcher_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with errors_as_sentences():
        cfg = load_config(args)
        check_data(cfg, ('test',))
        check_gpu(cfg, ('test',))
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        raise SystemExit(f'There is no checkpoint {args.checkpoint}.')
    if '://' not in args.checkpoint:
        with errors_as_sentences():
            load_checked(args.checkpoint)
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
        # Not **cfg.tta_model: of a pure Python config, whose imports MMEngine writes to
        # a file only as long as they are not looked at, it would make classes.
        tta_model = cfg.tta_model.copy()
        tta_model.module = cfg.model
        cfg.model = tta_model
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if args.background:
        with errors_as_sentences():
            add_background(cfg, args.background, args.background_proposals)
            check_data(cfg, ('background',))
    check_score_thr(cfg, ('test',))
    with lost_files_as_sentences(cfg.work_dir), missing_operators_as_sentences():
        runner = Runner.from_cfg(cfg)
        if args.out:
            runner.test_evaluator.metrics.append(DumpWhole(args.out))
        run_test(runner)
    if args.show_dir:
        pictures = Path(runner.work_dir, runner.timestamp, args.show_dir)
        print(f'Wrote pictures of the detections to {pictures}.')


if __name__ == '__main__':
    main()
