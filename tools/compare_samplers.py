"""Train a config with several samplers and seeds, and print one table."""

import argparse
from pathlib import Path

from mmdet_ohem.compare import SAMPLERS, compare, table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train a config with several samplers on the same budget. Runs '
        'that are finished are not run again; one that was cut off goes on.'
    )
    parser.add_argument('config', help='config of a two-stage detector')
    parser.add_argument(
        '--samplers',
        nargs='+',
        choices=list(SAMPLERS),
        default=list(SAMPLERS),
        metavar='SAMPLER',
        help=f'some of {", ".join(SAMPLERS)}; all of them if left out',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--jobs', type=int, default=1, help='runs at a time, sharing the CPU cores'
    )
    parser.add_argument(
        '--work-dir', help='work_dirs/compare/<name of the config> if left out'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], help='passed on to train.py and test.py'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.jobs < 1:
        raise SystemExit(f'--jobs must be 1 or more, not {args.jobs}.')
    if not Path(args.config).is_file():
        raise SystemExit(f'There is no config {args.config}.')
    folder = args.work_dir or Path('work_dirs/compare', Path(args.config).stem)
    try:
        results = compare(
            args.config,
            args.samplers,
            args.seeds,
            folder,
            Path(__file__).parent,
            args.cfg_options,
            args.jobs,
        )
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(
            '\nInterrupted; the same command goes on where it stopped.'
        ) from None
    print(f'\n{table(results)}\nSaved as {folder}/table.md and results.json.')


if __name__ == '__main__':
    main()
