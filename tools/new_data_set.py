"""Set up a data set of your own: from a folder to a pair of configs."""

import argparse
import re
import shlex
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from mmdet_ohem.config import rcnn_stages
from mmdet_ohem.datasets import Choice, choose_min_size, choose_num, choose_scale
from mmdet_ohem.proposals import clean_boxes, measure_recall
from mmdet_ohem.runs import (
    DataSet,
    Source,
    Split,
    class_names,
    dataset_config,
    describe,
    errors_as_sentences,
    fine_tuning_configs,
    has_masks,
    make_splits,
    read_detector,
    sample_proposals,
    small_configs,
    wants_masks,
    wants_proposals,
)
from mmdet_ohem.whole_file import whole_file

EXAMPLES = """examples:
  python tools/new_data_set.py --images cells/images --annotations cells/all.json \\
      --name cells
  python tools/new_data_set.py --images VOC/JPEGImages --annotations VOC/Annotations \\
      --train-list VOC/ImageSets/Main/trainval.txt \\
      --test-list VOC/ImageSets/Main/test.txt --name mine
  python tools/new_data_set.py --images export/train export/test \\
      --annotations export/train/_annotations.coco.json \\
      export/test/_annotations.coco.json --name mine \\
      --detector mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py \\
      --load-from faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Read the annotations of a data set (a folder of VOC XML files, or '
        'COCO JSON) and write configs/NAME/: the data file and a pair of configs, with '
        'random sampling and with OHEM. Says what was found in the data, which values '
        'it proposes from that, and which commands come next.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--images',
        required=True,
        nargs='+',
        type=Path,
        help='image folder; a second one if test images have their own',
    )
    parser.add_argument(
        '--annotations',
        required=True,
        nargs='+',
        type=Path,
        help='folder of XML files, or COCO JSON file; a second one if test images have '
        'their own',
    )
    parser.add_argument('--name', required=True, help='of the data set, for file names')
    parser.add_argument('--train-list', type=Path, help='ids of the training images')
    parser.add_argument('--test-list', type=Path, help='ids of the test images')
    parser.add_argument(
        '--test-fraction',
        type=float,
        default=0.2,
        help='of the images to draw for the test set, if none is given (default: 0.2); '
        'near-duplicates stay together',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the draw (default: 0)')
    parser.add_argument(
        '--detector',
        metavar='CONFIG',
        help='write the pair for this config of a two-stage detector instead of the '
        'small network, ready to fine-tune; a path, or mmdet::... of MMDetection',
    )
    parser.add_argument('--load-from', help='weights of the detector, a path or a URL')
    parser.add_argument(
        '--data-dir',
        type=Path,
        help='folder for lists, annotations and proposals; data/NAME if left out',
    )
    parser.add_argument(
        '--config-dir', type=Path, help='folder of configs; configs/NAME if left out'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace configs that are there'
    )
    return parser.parse_args()


def sources(args: argparse.Namespace) -> tuple[Source, Source | None]:
    """The training and the test images that the flags name."""
    lists = (args.train_list, args.test_list)
    if (args.train_list is None) != (args.test_list is None):
        raise ValueError('--train-list and --test-list go together: give both.')
    if len(args.images) > 2 or len(args.annotations) > 2:
        raise ValueError(
            '--images and --annotations take two folders or files at most.'
        )
    if len(args.images) > len(args.annotations):
        raise ValueError('Two folders of --images need two --annotations.')
    has_test = len(args.annotations) == 2 or args.test_list is not None
    train = Source(args.images[0], args.annotations[0], lists[0])
    test = Source(args.images[-1], args.annotations[-1], lists[1])
    return train, test if has_test else None


def prepare_command(args: argparse.Namespace, proposals: Path, min_size: int) -> str:
    words = ['python', 'tools/prepare_proposals.py', 'selective-search', '--images']
    words += [*map(str, args.images), '--annotations', *map(str, args.annotations)]
    return shlex.join([*words, '--min-size', str(min_size), '--out', str(proposals)])


def warn_of_duplicates(pairs: list[tuple[str, str]]) -> None:
    if not pairs:
        return
    print(
        f'\nWARNING: {len({test for _, test in pairs})} test images are nearly the '
        'same as training images (copies, mirrored, turned, or of other brightness), '
        'so the mAP will be too high. Put each such pair on one side, or leave the '
        'split to this tool, which keeps them together:'
    )
    for train, test in pairs[:5]:
        print(f'  {train}  {test}')
    if len(pairs) > 5:
        print(f'  ... and {len(pairs) - 5} more pairs')


def report_proposals(train: Split, min_size: int) -> list[int]:
    """Says what Selective Search gives on a sample; returns how many boxes."""
    with_objects = [image for image in train.images if image.names]
    sampled = sample_proposals(
        with_objects,
        lambda images, total: tqdm(
            images, 'Selective Search on a sample', total, unit='image', mininterval=1
        ),
    )
    sample = [
        (image, clean_boxes(boxes, image.size, min_size)) for image, boxes in sampled
    ]
    print(f'Of the sample: {measure_recall(sample)}')
    return [len(boxes) for _, boxes in sample]


def set_up(args: argparse.Namespace) -> None:
    if not re.fullmatch(r'[\w-]+', args.name):
        raise ValueError(
            f'--name is {args.name!r}: give letters, digits, - and _ alone.'
        )
    if not 0 < args.test_fraction < 1:
        raise ValueError(
            f'--test-fraction is {args.test_fraction:g}; it must be above 0 and '
            'below 1.'
        )
    folder = args.config_dir or Path('configs', args.name)
    data_dir = args.data_dir or Path('data', args.name)
    if any(folder.glob('*.py')) and not args.overwrite:
        raise FileExistsError(
            f'{folder} has configs in it: choose another --name or pass --overwrite.'
        )
    detector = read_detector(args.detector) if args.detector else None
    if args.load_from and detector is None:
        raise ValueError('--load-from needs --detector, whose weights it names.')
    if args.load_from and '://' not in args.load_from:
        if not Path(args.load_from).is_file():
            raise FileNotFoundError(f'There is no checkpoint {args.load_from}.')

    hashing = partial(
        tqdm, desc='Looking for near-duplicates', unit='image', mininterval=1
    )
    train, test, pairs = make_splits(
        *sources(args), args.test_fraction, args.seed, hashing
    )
    classes = class_names([train, test])
    print(describe(train, test, classes))
    if train.is_drawn:
        print(f'The test images were drawn, with seed {args.seed}.')
    warn_of_duplicates(pairs)
    if detector is not None and wants_masks(detector):
        if not (has_masks(train) and has_masks(test)):
            raise ValueError(
                f'{args.detector} trains on masks, and the annotations have boxes '
                'alone: give the config of a detector of boxes.'
            )

    min_size = choose_min_size(train.images)
    if detector is None or wants_proposals(detector):
        num = choose_num(report_proposals(train, min_size.value))
    else:
        num = Choice(
            rcnn_stages(detector.model)[0].sampler.num,
            "The detector's own: of an RPN's proposals many are foreground, and with "
            'fewer RoIs hardly any background would be mined (docs/samplers.md).',
        )
    proposals = data_dir / 'proposals'
    data = DataSet(
        args.name,
        shlex.join(['python', 'tools/new_data_set.py', *sys.argv[1:]]),
        classes,
        dataset_config(train, 'train', data_dir, classes),
        dataset_config(test, 'test', data_dir, classes),
        str(proposals),
        prepare_command(args, proposals, min_size.value),
    )
    print()
    if detector is None:
        scale = choose_scale(train.images)
        files = small_configs(data, scale, num, min_size)
        print(f'scale = {scale.value}: {scale.reason}')
        print(f'min_size = {min_size.value}: {min_size.reason}')
    else:
        files = fine_tuning_configs(
            args.detector, detector, data, num, args.load_from, folder
        )
    print(f'num = {num.value}: {num.reason}')
    for name, text in files.items():
        with whole_file(folder / name) as partial_file:
            partial_file.write_text(text)
    print(f'\nWrote {", ".join(files)} to {folder}. Next:')
    ohem = folder / list(files)[-1]
    if detector is None or wants_proposals(detector):
        print(f'  {data.prepare}')
    print(f'  python tools/train.py {ohem}')
    print(f'  python tools/compare_samplers.py {ohem}')
    print('docs/own_data.md has the commands for a test and for pictures too.')


def main() -> None:
    args = parse_args()
    with errors_as_sentences():
        set_up(args)


if __name__ == '__main__':
    main()
