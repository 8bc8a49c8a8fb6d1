"""Detect objects in pictures: python tools/demo.py IMAGE... --config --checkpoint."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from mmdet_ohem.datasets import picture_files
from mmdet_ohem.runs import (
    PictureDetector,
    add_config_arguments,
    add_device_argument,
    detect_pictures,
    errors_as_sentences,
    load_config,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Run a trained detector on pictures of your own; proposals, if it '
        'needs any, are made by Selective Search. Writes each picture with its '
        'detections to vis/ and the detections as JSON to preds/ of the work dir.'
    )
    parser.add_argument(
        'images',
        nargs='+',
        metavar='IMAGE',
        help="a picture, a folder of pictures or video frames, or a pattern, '*.jpg'",
    )
    parser.add_argument('--config', required=True, help='config of the detector')
    parser.add_argument('--checkpoint', required=True, help='its checkpoint file')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='the lowest score that is drawn (default: 0.3); the JSON has all',
    )
    add_device_argument(parser)
    add_config_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        with errors_as_sentences():
            cfg = load_config(args)
            if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
                raise FileNotFoundError(f'There is no checkpoint {args.checkpoint}.')
            paths = list(map(Path, picture_files(args.images)))
            detector = PictureDetector(cfg, args.checkpoint, args.device)
            skipped = detect_pictures(
                detector,
                paths,
                cfg.work_dir,
                args.score_thr,
                lambda results, total: tqdm(results, total=total, unit='picture'),
            )
    except KeyboardInterrupt:
        raise SystemExit('\nInterrupted; what is written stays.') from None
    for path in skipped:
        print(f'Skipped {path}: it cannot be read as an image.', file=sys.stderr)
    if len(skipped) == len(paths):
        raise SystemExit('No picture could be read.')
    print(
        f'Wrote {len(paths) - len(skipped)} pictures to {cfg.work_dir}/vis and preds.'
    )


if __name__ == '__main__':
    main()
