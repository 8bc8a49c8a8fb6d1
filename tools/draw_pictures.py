"""Draw detections on test images, and the RoIs that OHEM mines in training images."""

import argparse
from pathlib import Path

import mmcv
import numpy as np
from mmdet.registry import DATASETS
from tqdm import tqdm

from mmdet_ohem.check_data import check_data
from mmdet_ohem.launch import add_config_arguments, load_config
from mmdet_ohem.load_detector import load_detector
from mmdet_ohem.pictures import draw_detections, draw_mined, montage


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Write detections.png (test images) and mined.png (training images '
        'with the RoIs that OHEM mines).'
    )
    parser.add_argument('config', help='config with mmdet_ohem.OHEMSampler')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--num', type=int, default=6, help='images on each picture')
    parser.add_argument('--device', default='cpu')
    add_config_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_data(cfg, ('train', 'test'))
    if not Path(args.checkpoint).is_file():
        raise SystemExit(f'There is no checkpoint {args.checkpoint}.')
    if '_ohem.OHEMSampler' not in str(cfg.model.train_cfg.rcnn):
        raise SystemExit(
            f'{args.config} has no mmdet_ohem.OHEMSampler in model.train_cfg.rcnn: '
            'there are no mined RoIs to draw.'
        )
    try:
        detector = load_detector(cfg, args.checkpoint, args.device)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    for name, loop, draw in (
        ('detections', 'test', draw_detections),
        ('mined', 'train', draw_mined),
    ):
        dataset = DATASETS.build(cfg[f'{loop}_dataloader'].dataset)
        # Spread over the data set, always the same.
        indices = np.linspace(0, len(dataset) - 1, args.num, dtype=int)
        pictures = [
            draw(detector, dataset, index) for index in tqdm(indices.tolist(), name)
        ]
        path = Path(cfg.work_dir, f'{name}.png')
        mmcv.imwrite(montage(pictures)[..., ::-1], str(path))
        print(f'Wrote {path}.')


if __name__ == '__main__':
    main()
