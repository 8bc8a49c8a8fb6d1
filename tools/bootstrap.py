"""Train, mine a pool of pictures without objects, train on: python tools/bootstrap.py
CONFIG --pool POOL."""

import argparse
from functools import partial
from pathlib import Path

from mmdet_ohem.runs import (
    Bootstrap,
    add_budget_argument,
    add_config_arguments,
    add_mining_arguments,
    check_data,
    errors_as_sentences,
    load_config,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train a detector in rounds. After each round it is run over a '
        'pool of pictures that hold no object, and from then on those in which it '
        'fires are trained on too. A fifth of the pool is held out: the false '
        'positives there say what each round gains. The same command goes on with '
        'what was cut off.'
    )
    parser.add_argument('config', help='config of a two-stage detector')
    parser.add_argument(
        '--pool',
        required=True,
        help="pictures without objects: a folder, a pattern ('**/*.jpg'), or a list, a "
        '.txt file with the path of a picture a line',
    )
    parser.add_argument('--rounds', type=int, default=3, help='trainings (default: 3)')
    parser.add_argument(
        '--share',
        type=float,
        help='of the pool in each batch, of 1 / SHARE images or more; as many as a '
        'shuffle gives if left out',
    )
    add_budget_argument(parser)
    add_mining_arguments(parser)
    add_config_arguments(parser, 'work_dirs/bootstrap/<name of the config>')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.rounds < 1:
        raise SystemExit('--rounds must be 1 or more.')
    folder = args.work_dir or Path('work_dirs/bootstrap', Path(args.config).stem)
    folder = Path(folder).absolute()
    try:
        with errors_as_sentences(RuntimeError):
            cfg = load_config(args)
            check_data(cfg, ('train', 'val', 'test'))
            Bootstrap(
                cfg,
                args.pool,
                folder,
                Path(__file__).parent,
                args.rounds,
                args.budget,
                args.share,
                args.score_thr,
                args.max_per_image,
                args.jobs,
                say=partial(print, flush=True),
            ).run()
    except KeyboardInterrupt:
        raise SystemExit(
            '\nInterrupted; the same command goes on where it stopped.'
        ) from None
    print(f'\n{(folder / "table.md").read_text()}')
    print(f'Saved in {folder}; each roundN/pool/background.html is to look through.')


if __name__ == '__main__':
    main()
