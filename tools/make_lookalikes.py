"""Write the small data set of the demo: parts with a hole, and blanks without."""

import argparse

from mmdet_ohem.lookalikes import generate


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write a small data set in VOC layout: washers, nuts and gears '
        'among undrilled blanks. The same seed gives the same bytes.'
    )
    parser.add_argument('root', help='a new folder, such as data/lookalikes')
    parser.add_argument('--num-train', type=int, default=120, help='training images')
    parser.add_argument('--num-test', type=int, default=60, help='test images')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    try:
        generate(args.root, args.num_train, args.num_test, args.seed)
    except FileExistsError as error:
        raise SystemExit(str(error)) from error
    print(f'Wrote {args.num_train} + {args.num_test} images to {args.root}.')


if __name__ == '__main__':
    main()
