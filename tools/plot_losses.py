"""Draw the losses of several trainings in one picture, as in the paper's Figure 2."""

import argparse
from pathlib import Path

from mmdet_ohem.visualization import LOSS_ALL_ROIS, plot_curves, read_curve


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Draw the mean loss per RoI over all RoIs, the same measure for '
        'every sampler, of several trainings. A training that was resumed is one '
        'curve.'
    )
    parser.add_argument(
        'work_dirs', nargs='+', metavar='WORK_DIR', help='folder of a training'
    )
    parser.add_argument(
        '--names', nargs='+', help='for the legend; names of the folders if left out'
    )
    parser.add_argument(
        '--key',
        default=LOSS_ALL_ROIS,
        help=f'scalar to draw; {LOSS_ALL_ROIS} if left out',
    )
    parser.add_argument('--out', default='losses.png', help='the picture, PNG or PDF')
    args = parser.parse_args()
    names = args.names or [Path(work_dir).resolve().name for work_dir in args.work_dirs]
    if len(names) != len(args.work_dirs):
        raise SystemExit(
            f'{len(names)} --names were given for {len(args.work_dirs)} work dirs.'
        )
    if len(set(names)) < len(names):
        raise SystemExit(
            f'Two curves would have the same name ({", ".join(names)}): give --names.'
        )
    try:
        curves = {
            name: read_curve(work_dir, args.key)
            for name, work_dir in zip(names, args.work_dirs, strict=True)
        }
        plot_curves(curves, args.out, args.key)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    for name, curve in curves.items():
        print(f'{name}: {list(curve.values())[-1]:.4f} at iteration {max(curve)}')
    ends = {max(curve) for curve in curves.values()}
    if len(ends) > 1:
        print(
            'The curves have different lengths: compare them up to iteration '
            f'{min(ends)} alone.'
        )
    print(f'Wrote {args.out}.')


if __name__ == '__main__':
    main()
