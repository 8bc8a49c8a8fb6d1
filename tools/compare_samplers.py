"""Train a config with several samplers and seeds: which one does your data want?"""

import argparse
from pathlib import Path

from mmdet_ohem.check_data import check_data
from mmdet_ohem.compare import compare
from mmdet_ohem.compare_configs import SAMPLERS, fitting_samplers, why_not
from mmdet_ohem.launch import add_config_arguments, load_config


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
    parser.add_argument(
        '--budget',
        type=int,
        help='iterations of each run, or epochs where the config counts those; as in '
        'the config if left out',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        help='runs at a time; one for each GPU if left out, or one on the CPU',
    )
    add_config_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for name in ('jobs', 'budget'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise SystemExit(f'--{name} must be 1 or more, not {getattr(args, name)}.')
    folder = args.work_dir or Path('work_dirs/compare', Path(args.config).stem)
    cfg = load_config(args)
    try:
        fitting = fitting_samplers(cfg)
        samplers = args.samplers or fitting
        for name in SAMPLERS:
            if not args.samplers and name not in fitting:
                print(f'Without {name}: {why_not(cfg, name)}')
        check_data(cfg, ('train', 'test'))
        compare(
            cfg,
            list(dict.fromkeys(samplers)),
            list(dict.fromkeys(args.seeds)),
            folder,
            Path(__file__).parent,
            args.budget,
            args.jobs,
        )
    except (RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(
            '\nInterrupted; the same command goes on where it stopped.'
        ) from None
    print(f'\n{Path(folder, "table.md").read_text()}')
    print(f'Saved in {folder}: table.md, results.json, curves.png.')


if __name__ == '__main__':
    main()
