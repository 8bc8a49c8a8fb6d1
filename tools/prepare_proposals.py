"""Make the proposal store that a config's pipeline reads.

Boxes come from images (Selective Search), from Fast R-CNN's Selective Search files
(.mat), from MCG's (a .mat for each image), or from MMDetection's DumpProposals metric
(.pkl). Image ids are file names without suffix, as in VOC's image lists.
"""

import argparse
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmdet_ohem.image_folder import find_image, image_size, list_images, pick_images
from mmdet_ohem.proposal_dump import read_dump
from mmdet_ohem.proposal_files import clean_boxes, read_mats, read_mcg_folder
from mmdet_ohem.proposal_store import check_target, write_store
from mmdet_ohem.selective_search import search_images

EXAMPLES = """examples:
  python tools/prepare_proposals.py selective-search --images VOC/JPEGImages \\
      --ids VOC/ImageSets/Main/trainval.txt --out data/proposals
  python tools/prepare_proposals.py mat voc_2007_trainval.mat voc_2007_test.mat \\
      --images VOCdevkit/VOC2007/JPEGImages --out data/proposals/voc07
  python tools/prepare_proposals.py mat a_boxes.mat b_boxes.mat \\
      --images a.jpg b.jpg --out data/proposals/two_images
  python tools/prepare_proposals.py mcg MCG/mat --images coco/train2014 \\
      --top-k 2000 --out data/coco/mcg/train2014
  python tools/prepare_proposals.py dump rpn.pkl --images VOC/JPEGImages \\
      --out data/proposals/rpn
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
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest='command', required=True)

    search = commands.add_parser(
        'selective-search', parents=[common], help='propose boxes for images'
    )
    search.add_argument('--images', required=True, help='image folder')
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
    return parser.parse_args()


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


def prepare(args: argparse.Namespace) -> None:
    check_target(args.out, args.overwrite)  # now, not after an hour of work
    top_k = total = None
    partial = args.out.with_name(f'{args.out.name}.partial')
    if args.command == 'selective-search':
        images = pick_images(args.images, args.ids)
        mode = 'quality' if args.quality else 'fast'
        # Images of another folder may have the same ids.
        origin = zlib.crc32(str(Path(args.images).resolve()).encode())
        found = partial / f'{mode}-{origin:08x}'
        search_images(images, found, args.quality, args.workers)
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
    records = clean(proposals, args.min_size, top_k, total, counts)
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


def main() -> None:
    args = parse_args()
    try:
        prepare(args)
    except KeyboardInterrupt:
        sys.exit('Interrupted; selective-search goes on with what is left next time.')
    except BrokenProcessPool:
        sys.exit('A worker was killed (out of memory?): try with fewer --workers.')
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
