"""Make the proposal store that a config's pipeline reads.

Boxes come from images (Selective Search), from Fast R-CNN's Selective Search files
(.mat), from MCG's (a .mat for each image), or from MMDetection's DumpProposals metric
(.pkl). Image ids are file names without suffix, as in VOC's image lists. With
annotations it says how many of the objects the proposals reach.

`check` reads a store that is there and says whether it is whole.
"""

import argparse
import functools
import math
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmdet_ohem.datasets import (
    LabelledImage,
    find_image,
    image_size,
    list_images,
    pick_images,
    read_annotations,
)
from mmdet_ohem.proposals import (
    ProposalStore,
    check_target,
    clean_boxes,
    measure_recall,
    read_dump,
    read_mats,
    read_mcg_folder,
    search_images,
    write_store,
)
from mmdet_ohem.runs import errors_as_sentences
from mmdet_ohem.whole_file import only_one

EXAMPLES = """examples:
  python tools/prepare_proposals.py selective-search --images VOC/JPEGImages \\
      --ids VOC/ImageSets/Main/trainval.txt --out data/proposals
  python tools/prepare_proposals.py selective-search --images cells/images \\
      --annotations cells/all.json --out data/cells/proposals
  python tools/prepare_proposals.py mat voc_2007_trainval.mat voc_2007_test.mat \\
      --images VOCdevkit/VOC2007/JPEGImages --out data/proposals/voc07
  python tools/prepare_proposals.py mat a_boxes.mat b_boxes.mat \\
      --images a.jpg b.jpg --out data/proposals/two_images
  python tools/prepare_proposals.py mcg MCG/mat --images coco/train2014 \\
      --top-k 2000 --out data/coco/mcg/train2014
  python tools/prepare_proposals.py dump rpn.pkl --images VOC/JPEGImages \\
      --out data/proposals/rpn
  python tools/prepare_proposals.py check data/proposals/rpn
"""


def parse_args() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--out', required=True, type=Path, help='the store to make')
    common.add_argument(
        '--min-size',
        type=float,
        default=2,
        help='drop boxes with x2 - x1 or y2 - y1 below this, in px (default: 2)',
    )
    common.add_argument(
        '--overwrite', action='store_true', help='replace an existing store'
    )
    common.add_argument(
        '--annotations',
        nargs='+',
        type=Path,
        help='folder of VOC XML files, or COCO JSON file; one for each of --images, or '
        'several for one folder: measure how many of the objects the proposals reach, '
        'and with selective-search propose for the annotated images alone',
    )
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest='command', required=True)

    search = commands.add_parser(
        'selective-search', parents=[common], help='propose boxes for images'
    )
    search.add_argument(
        '--images',
        required=True,
        nargs='+',
        help='image folder; several with one of --annotations each',
    )
    search.add_argument(
        '--ids', nargs='+', help='lists of image ids, one a line (default: all images)'
    )
    search.add_argument(
        '--quality', action='store_true', help='more boxes, three times as slow'
    )
    search.add_argument('--workers', type=int, help='processes (default: all cores)')

    mat = commands.add_parser(
        'mat', parents=[common], help='read Selective Search files of Fast R-CNN'
    )
    mat.add_argument('files', nargs='+', help='.mat files')
    mat.add_argument(
        '--images',
        nargs='+',
        required=True,
        help="the image folder of data sets' files; or, for single images' files, "
        'their image files in the same order',
    )

    mcg = commands.add_parser(
        'mcg', parents=[common], help='read MCG proposals, a .mat for each image'
    )
    mcg.add_argument('folder', help='folder of .mat files, in subfolders too')
    mcg.add_argument('--images', required=True, help='image folder')
    mcg.add_argument(
        '--top-k',
        type=int,
        default=2000,
        help='the best boxes to keep of an image, of those that are no duplicates and '
        "not too small (default: 2000, Fast R-CNN's on COCO)",
    )

    dump = commands.add_parser(
        'dump', parents=[common], help='read a proposal dump of MMDetection'
    )
    dump.add_argument('file', help='.pkl file')
    dump.add_argument('--images', required=True, help='image folder')

    check = commands.add_parser(
        'check', help='read a store and compare it with its checksums'
    )
    check.add_argument('store', help='the store that is there')
    return parser.parse_args()


def read_objects(args: argparse.Namespace) -> list[LabelledImage]:
    """The annotated images; none without --annotations."""
    if args.annotations is None:
        return []
    folders = args.images if isinstance(args.images, list) else [args.images]
    if len(folders) == 1:
        folders = folders * len(args.annotations)
    if len(folders) != len(args.annotations):
        raise ValueError(
            f'{len(folders)} --images and {len(args.annotations)} --annotations do not '
            'pair: give one of each for every folder, in the same order.'
        )
    pairs = zip(args.annotations, folders, strict=True)
    return [image for pair in pairs for image in read_annotations(*pair)]


def images_to_search(
    args: argparse.Namespace, labelled: list[LabelledImage]
) -> dict[str, Path]:
    """Image files by image id: the annotated ones, or those of the folder."""
    if not labelled:
        if len(args.images) > 1:
            raise ValueError('Several folders of --images need --annotations for each.')
        return pick_images(args.images[0], args.ids)
    if args.ids:
        raise ValueError(
            '--ids and --annotations do not go together: leave --annotations out, or '
            'give a folder with the annotations of these images alone.'
        )
    images = {image.img_id: image.file for image in labelled}
    if len(images) < len(labelled):
        raise ValueError('Two annotated images have the same name: rename one.')
    return images


def report_recall(args: argparse.Namespace, labelled: list[LabelledImage]) -> None:
    """Say which part of the objects the store's proposals reach."""
    store = ProposalStore(args.out)
    recall = measure_recall(
        (image, store.get(image.img_id)[0])
        for image in labelled
        if image.img_id in store
    )
    print(recall)
    if not recall.is_low:
        return
    print(
        f'That is low: {1 - recall.at(0.5):.0%} of the objects cannot be found, '
        'whatever the detector. What may help:'
    )
    if args.command == 'selective-search' and not args.quality:
        print('  --quality proposes some three times as many boxes')
    if args.min_size > 2:
        print(f'  a lower --min-size than {args.min_size:g} px keeps smaller boxes')
    print(
        '  larger image files, for objects of few px: Selective Search works at the '
        'size of the file\n  a detector that proposes boxes itself: '
        'tools/new_data_set.py --detector'
    )


def clean(
    proposals: Iterable[tuple[Path, np.ndarray]],
    min_size: float,
    top_k: int | None,
    total: int | None,
    counts: np.ndarray,
) -> Iterator[tuple[str, np.ndarray, tuple[int, int]]]:
    """Turn (image file, boxes) into the store's records, counting as they pass."""
    for image, boxes in tqdm(proposals, 'Packing', total, unit='image', mininterval=1):
        size = image_size(image)
        kept = clean_boxes(boxes, size, min_size, name=image.stem)[:top_k]
        counts += (1, len(boxes), len(kept))
        yield image.stem, kept, size


def check(path: str) -> None:
    """Say whether a store is whole; ValueError where it is not."""
    store = ProposalStore(path)
    progress = functools.partial(tqdm, desc='Checking', leave=False, mininterval=1)
    if store.check(progress):
        print(f'{path} is whole: {len(store)} images, as they were written.')
    else:
        print(
            f'{path} is whole as far as can be seen: {len(store)} images. It was made '
            'by an older version, without checksums.'
        )


def partial_of(out: Path) -> Path:
    """Where the boxes of a search lie until all are there; beside a link's target."""
    return Path(f'{os.path.realpath(out)}.partial')


def alone(args: argparse.Namespace) -> AbstractContextManager:
    """Keep a second search with the same --out away from the boxes of this one."""
    if args.command != 'selective-search':
        return nullcontext()
    return only_one(partial_of(args.out), f'a search for {args.out}')


def prepare(args: argparse.Namespace) -> None:
    if not 0 <= args.min_size < math.inf:
        raise ValueError(f'--min-size is {args.min_size}, but a side is 0 px or more.')
    check_target(args.out, args.overwrite)  # now, not after an hour of work
    labelled = read_objects(args)
    top_k = total = None
    partial = partial_of(args.out)
    if args.command == 'selective-search':
        images = images_to_search(args, labelled)
        mode = 'quality' if args.quality else 'fast'
        # Images of another folder may have the same ids.
        folders = ' '.join(str(Path(folder).resolve()) for folder in args.images)
        origin = zlib.crc32(folders.encode())
        found = partial / f'{mode}-{origin:08x}'
        progress = functools.partial(
            tqdm, desc='Selective Search', unit='image', mininterval=1
        )
        before = search_images(images, found, args.quality, args.workers, progress)
        if before:
            print(f'{before} of {len(images)} images were done before.')
        source = f'Selective Search, {mode}'
        proposals = (
            (image, np.load(found / f'{img_id}.npy', allow_pickle=False))
            for img_id, image in images.items()
        )
    elif args.command == 'mat':
        source = ' '.join(Path(file).name for file in args.files)
        proposals = read_mats(args.files, args.images)
    elif args.command == 'mcg':
        if args.top_k < 1:
            raise ValueError(f'--top-k is {args.top_k}, but at least 1 box is needed.')
        source = f'MCG, {Path(args.folder).name}, the best {args.top_k}'
        images = list_images(args.images)
        top_k, total = args.top_k, len(images)
        proposals = read_mcg_folder(args.folder, images)
    else:
        source = Path(args.file).name
        images = list_images(args.images)
        proposals = (
            (find_image(images, img_id, args.images), boxes)
            for img_id, boxes in read_dump(args.file).items()
        )

    counts = np.zeros(3, dtype=np.int64)
    # After an error the bar ends here, and not below the sentence.
    with closing(clean(proposals, args.min_size, top_k, total, counts)) as records:
        write_store(args.out, records, source, args.overwrite)
    if args.command == 'selective-search':
        shutil.rmtree(partial)
    images, before, after = counts
    print(
        f'{args.out}: {images} images, {before} boxes read, {after} kept '
        f'({after / images:.0f} an image); duplicates and boxes with a side under '
        f'{args.min_size:g} px are gone'
        + (f', and all but the best {top_k} of an image.' if top_k else '.')
    )
    if labelled:
        report_recall(args, labelled)


def main() -> None:
    args = parse_args()
    try:
        with errors_as_sentences():
            if args.command == 'check':
                check(args.store)
            else:
                with alone(args):
                    prepare(args)
    except KeyboardInterrupt:
        sys.exit('Interrupted; selective-search goes on with what is left next time.')
    except BrokenProcessPool:
        sys.exit('A worker was killed (out of memory?): try with fewer --workers.')


if __name__ == '__main__':
    main()
