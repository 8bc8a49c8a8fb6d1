"""Copy a data set in VOC layout with some labels spoilt on purpose."""

import argparse

from studies.corrupt_labels import corrupt_labels

from mmdet_ohem.runs import errors_as_sentences


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write the annotations of a data set in VOC layout anew, with some '
        'objects of a wrong class and some left out; corrupted.json says which. See '
        'tools/hardest_images.py, which is to find them.'
    )
    parser.add_argument('root', help='the data set, such as data/bccd')
    parser.add_argument('out', help='a new folder, such as data/bccd_corrupted')
    parser.add_argument(
        '--image-list',
        default='trainval',
        help='only images in ImageSets/Main/<this>.txt; trainval if left out',
    )
    parser.add_argument(
        '--wrong', type=float, default=0.05, help='fraction that gets another class'
    )
    parser.add_argument(
        '--removed', type=float, default=0.0, help='fraction that is left out'
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    with errors_as_sentences():
        spoilt = corrupt_labels(**vars(args))
    num_removed = sum(label['given'] is None for label in spoilt)
    print(
        f'Wrote {args.out}: {len(spoilt) - num_removed} objects have a wrong class, '
        f'{num_removed} are left out (corrupted.json).'
    )


if __name__ == '__main__':
    main()
