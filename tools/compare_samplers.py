"""Train a config with several samplers and seeds: which one does your data want?"""

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from mmdet_ohem.compare import SAMPLERS, compare, fitting_samplers, why_not
from mmdet_ohem.runs import (
    add_background,
    add_background_arguments,
    add_budget_argument,
    add_config_arguments,
    check_data,
    check_score_thr,
    errors_as_sentences,
    load_config,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train a config of a two-stage detector with several samplers on '
        'the same budget, one after another or over the GPUs there are, and print one '
        'table. Runs that are finished are not run again; one that was cut off goes '
        'on.'
    )
    parser.add_argument('config', help='config of a two-stage detector')
    parser.add_argument(
        '--samplers',
        nargs='+',
        choices=list(SAMPLERS),
        metavar='SAMPLER',
        help=f'some of {", ".join(SAMPLERS)}; all that the config can have if left out',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    add_budget_argument(parser)
    parser.add_argument(
        '--lr',
        nargs='+',
        type=float,
        default=[],
        help='learning rates: the best for each sampler is chosen with --select',
    )
    parser.add_argument(
        '--select',
        nargs=2,
        metavar=('TRAIN', 'VAL'),
        help="two annotation files (ann_file) of the training set's images: each --lr "
        'is trained on the first and tested on the second, with the first of the '
        "seeds; then the config's own sets are trained and tested on with the choice",
    )
    parser.add_argument(
        '--jobs',
        type=int,
        help='runs at a time; one for each GPU if left out, or one on the CPU',
    )
    add_background_arguments(parser)
    add_config_arguments(parser, 'work_dirs/compare/<name of the config>')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.jobs is not None and args.jobs < 1:
        raise SystemExit(f'--jobs must be 1 or more, not {args.jobs}.')
    if bool(args.lr) != bool(args.select):
        raise SystemExit(
            '--lr and --select go together: learning rates, and a part of the training '
            'set (TRAIN) with another (VAL) on which the best of them is chosen.'
        )
    is_terminal = sys.stderr.isatty()
    folder = args.work_dir or Path('work_dirs/compare', Path(args.config).stem)
    try:
        with errors_as_sentences(RuntimeError):
            cfg = load_config(args)
            fitting = fitting_samplers(cfg)
            samplers = args.samplers or fitting
            for name in SAMPLERS:
                if not args.samplers and name not in fitting:
                    print(f'Without {name}: {why_not(cfg, name)}')
            if args.background:
                add_background(cfg, args.background, args.background_proposals)
            check_data(cfg, ('train', 'test', 'background'))
            check_score_thr(cfg, ('test',))
            compare(
                cfg,
                list(dict.fromkeys(samplers)),
                list(dict.fromkeys(args.seeds)),
                folder,
                Path(__file__).parent,
                args.budget,
                args.jobs,
                # In a terminal bars are below the lines.
                say=tqdm.write if is_terminal else partial(print, flush=True),
                bar=tqdm if is_terminal else None,
                lrs=args.lr,
                select=args.select,
            )
    except KeyboardInterrupt:
        raise SystemExit(
            '\nInterrupted; the same command goes on where it stopped.'
        ) from None
    print(f'\n{Path(folder, "table.md").read_text()}')
    print(f'Saved in {folder}: table.md, results.json, curves.png.')


if __name__ == '__main__':
    main()
