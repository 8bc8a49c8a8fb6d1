"""Draw detections on test images, and the RoIs that OHEM mines in training images."""

import argparse
from pathlib import Path

import mmcv
import numpy as np
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.runner import set_random_seed
from tqdm import tqdm

from mmdet_ohem import OHEMSampler
from mmdet_ohem.checkpoint import numbered_checkpoints
from mmdet_ohem.config import is_type, rcnn_stages
from mmdet_ohem.runs import (
    add_config_arguments,
    add_device_argument,
    check_data,
    errors_as_sentences,
    load_config,
    load_detector,
)
from mmdet_ohem.visualization import (
    DETECTIONS_LEGEND,
    MINED_LEGEND,
    draw_detections,
    draw_mined,
    montage,
    titled,
    with_legend,
)
from mmdet_ohem.whole_file import whole_file


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Write detections.png (test images, false positives marked) and '
        'mined.png (training images with the RoIs that OHEM mines, early in the '
        'training and at its end, if its work dir holds several checkpoints).'
    )
    parser.add_argument('config', help='config with mmdet_ohem.OHEMSampler')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--beside',
        metavar='CHECKPOINT',
        help='another checkpoint of the same network, such as one of random sampling: '
        'its detections stand beside those of the first',
    )
    parser.add_argument('--num', type=int, default=6, help='images on each picture')
    add_device_argument(parser)
    add_config_arguments(parser)
    return parser.parse_args()


def read_config(args: argparse.Namespace) -> Config:
    cfg = load_config(args)
    check_data(cfg, ('train', 'test'))
    for checkpoint in filter(None, (args.checkpoint, args.beside)):
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(f'There is no checkpoint {checkpoint}.')
    samplers = [stage.get('sampler') or {} for stage in rcnn_stages(cfg.model)]
    if not any(is_type(sampler, OHEMSampler) for sampler in samplers):
        raise ValueError(
            f'{args.config} has no mmdet_ohem.OHEMSampler in model.train_cfg.rcnn: '
            'there are no mined RoIs to draw.'
        )
    return cfg


def place_of(checkpoint: str | Path) -> str:
    """Folder and name of a checkpoint, as a title."""
    return f'{Path(checkpoint).parent.name} {Path(checkpoint).stem}'


def draw(draw_one, detectors: dict[str, BaseDetector], dataset: BaseDataset, num: int):
    """Pictures of the same images, for one detector after the other."""
    # Spread over the data set, always the same.
    indices = np.linspace(0, len(dataset) - 1, num, dtype=int).tolist()
    pictures = []
    for index in tqdm(indices, unit='image'):
        for title, detector in detectors.items():
            set_random_seed(index)  # the same flip for every detector
            picture = draw_one(detector, dataset, index)
            pictures.append(titled(picture, title) if len(detectors) > 1 else picture)
    columns = 3 if len(detectors) == 1 else 4
    return montage(pictures, min(columns, len(pictures)))


def main() -> None:
    args = parse_args()
    with errors_as_sentences():
        cfg = read_config(args)
        of_test = {
            place_of(checkpoint): load_detector(cfg, checkpoint, args.device)
            for checkpoint in filter(None, (args.beside, args.checkpoint))
        }
        last = of_test[place_of(args.checkpoint)]
        of_train = {place_of(args.checkpoint): last}
        first, *_ = numbered_checkpoints(Path(args.checkpoint).parent) or [
            args.checkpoint
        ]
        if place_of(first) not in of_train:
            early = load_detector(cfg, first, args.device)
            of_train = {place_of(first): early, **of_train}
    for name, loop, draw_one, legend, detectors in (
        ('detections', 'test', draw_detections, DETECTIONS_LEGEND, of_test),
        ('mined', 'train', draw_mined, MINED_LEGEND, of_train),
    ):
        dataset = DATASETS.build(cfg[f'{loop}_dataloader'].dataset)
        sheet = with_legend(draw(draw_one, detectors, dataset, args.num), legend)
        path = Path(cfg.work_dir, f'{name}.png')
        with errors_as_sentences(), whole_file(path) as partial:
            mmcv.imwrite(sheet[..., ::-1], str(partial))
        print(f'Wrote {path}.')


if __name__ == '__main__':
    main()
