"""Write the small data set of the demo: parts with a hole, and blanks without."""

import argparse
from functools import partial

from tqdm import tqdm

from mmdet_ohem.datasets import generate, generate_empty, generate_rotated
from mmdet_ohem.runs import errors_as_sentences


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write a small data set in VOC layout: washers, nuts and gears '
        'among undrilled blanks, or with --rotated bars, links and spindles at any '
        'angle in the layout of DOTA. The same seed gives the same bytes.'
    )
    parser.add_argument('root', help='a new folder, such as data/lookalikes')
    parser.add_argument('--num-train', type=int, default=120, help='training images')
    parser.add_argument('--num-test', type=int, default=60, help='test images')
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        '--empty',
        type=int,
        metavar='NUM',
        help='only NUM pictures of blanks, without objects: a pool of background',
    )
    kind.add_argument(
        '--rotated',
        action='store_true',
        help='elongated parts at any angle, for MMRotate: train, val (as many images '
        'as test) and test, with text annotations as DOTA has them',
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    progress = partial(tqdm, unit='image', mininterval=1)
    with errors_as_sentences():
        if args.empty is not None:
            generate_empty(args.root, args.empty, args.seed, progress)
            print(f'Wrote {args.empty} pictures without objects to {args.root}.')
            return
        write = generate_rotated if args.rotated else generate
        write(args.root, args.num_train, args.num_test, args.seed, progress)
    print(f'Wrote {args.num_train} + {args.num_test} images to {args.root}.')


if __name__ == '__main__':
    main()
