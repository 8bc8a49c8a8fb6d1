"""Find the background that a detector takes for objects, to train on it."""

import argparse
import functools
import sys
from pathlib import Path

from tqdm import tqdm

from mmdet_ohem.reports import write_background_page
from mmdet_ohem.runs import (
    BACKGROUND,
    PROPOSALS,
    add_mining_arguments,
    add_options_argument,
    check_data,
    errors_as_sentences,
    load_config,
    mine_background,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Run a detector over pictures that hold no object and keep those '
        'in which it fires: background.jsonl, a background set to train on '
        '(mmdet_ohem.BackgroundDataset), and background.html, a page to look through '
        'for objects that were forgotten. The same command goes on with what was cut '
        'off.'
    )
    parser.add_argument('config', help='config of the detector')
    parser.add_argument('checkpoint', help='its checkpoint file')
    parser.add_argument(
        'pool',
        help="pictures without objects: a folder, a pattern ('**/*.jpg'), or a list, a "
        '.txt file with the path of a picture a line',
    )
    parser.add_argument(
        '--out', dest='work_dir', required=True, help='folder for what is found'
    )
    add_mining_arguments(parser)
    parser.add_argument(
        '--num', type=int, default=200, help='pictures on the page (default: 200)'
    )
    add_options_argument(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        with errors_as_sentences(RuntimeError):
            cfg = load_config(args)
            if not Path(args.checkpoint).is_file():
                raise FileNotFoundError(f'There is no checkpoint {args.checkpoint}.')
            check_data(cfg, ('train', 'test'))
            found = mine_background(
                cfg,
                args.checkpoint,
                args.pool,
                args.work_dir,
                args.score_thr,
                args.max_per_image,
                args.jobs,
                functools.partial(tqdm, unit='picture', mininterval=1),
            )
            folder = Path(args.work_dir)
            page = write_background_page(folder / BACKGROUND, args.num)
    except KeyboardInterrupt:
        raise SystemExit(
            '\nInterrupted; the same command goes on where it stopped.'
        ) from None
    for path in found['skipped']:
        print(f'Skipped {path}: it cannot be read as an image.', file=sys.stderr)
    if not found['images']:
        print(
            f'The detector fires in none of the {found["pictures"]} pictures at a '
            f'score of {args.score_thr:g} or more; its surest detection has '
            f'{found["surest"]:.2g}. If it fires at scores like that where it works, '
            'mine with a lower --score-thr and another --out; if not, there is nothing '
            'to do.'
        )
        return
    print(
        f'{found["false_positives"]} false positives of score {args.score_thr:g} or '
        f'more in {found["images"]} of {found["pictures"]} pictures.'
    )
    if 'reached' in found:
        share = found['reached'] / found['false_positives']
        print(
            f'Selective Search has a box at IoU 0.7 or more for {share:.1%} of them; '
            f'{folder / PROPOSALS} has its boxes and the false positives themselves.'
        )
    print(f'Wrote {folder / BACKGROUND}, and {page} to look through.')


if __name__ == '__main__':
    main()
