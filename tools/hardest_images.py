"""List the training images and labels that stay hard: look for wrong labels there."""

import argparse
from pathlib import Path

from mmdet.registry import DATASETS, MODELS
from mmengine.registry import init_default_scope
from tqdm import tqdm

from mmdet_ohem.checkpoint import numbered_checkpoints
from mmdet_ohem.reports import count_found, find_hardest, read_spoilt, write_report
from mmdet_ohem.runs import (
    add_config_arguments,
    add_device_argument,
    check_data,
    errors_as_sentences,
    load_config,
    to_device,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Run the training images through the checkpoints of a training, of '
        'any sampler, and rank ground-truth boxes, background and images by their '
        'loss: hardest.html to look at, hardest.json and hardest.csv.'
    )
    parser.add_argument('config', help='config of the training')
    parser.add_argument(
        'checkpoints',
        nargs='+',
        help='checkpoints of it, in the order of time, or its work dir: all that it '
        'holds (default_hooks.checkpoint.max_keep_ckpts says how many are kept)',
    )
    parser.add_argument(
        '--num', type=int, default=100, help='entries of each list on the page'
    )
    parser.add_argument(
        '--corrupted',
        help='corrupted.json of tools/corrupt_labels.py: say how many of its labels '
        'are in the first tenth of the list',
    )
    add_device_argument(parser)
    add_config_arguments(parser)
    return parser.parse_args()


def find_checkpoints(paths: list[str]) -> list[str]:
    """Files as they are; of a work dir its iter_N.pth or epoch_N.pth by N."""
    found = []
    for path in map(Path, paths):
        files = numbered_checkpoints(path) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise FileNotFoundError(f'There is no checkpoint {path}, nor one in it.')
        found += map(str, files)
    return found


def main() -> None:
    args = parse_args()
    with errors_as_sentences():
        cfg = load_config(args)
        check_data(cfg, ('train',))
        if 'roi_head' not in cfg.model:
            raise ValueError(
                f'{args.config} has no model.roi_head, whose RoIs could be ranked.'
            )
        checkpoints = find_checkpoints(args.checkpoints)
        spoilt = read_spoilt(args.corrupted) if args.corrupted else []
        init_default_scope(cfg.get('default_scope') or 'mmdet')
        detector = to_device(MODELS.build(cfg.model), args.device)
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        report = find_hardest(detector, dataset, checkpoints, progress=tqdm)
        write_report(report, cfg.work_dir, args.num)
    print(f'Wrote {cfg.work_dir}/hardest.html, hardest.json and hardest.csv.')
    for hard in report.boxes[:5]:
        print(
            f'  {hard.img_id} {hard.box}: {hard.label}, the network says {hard.says} '
            f'({hard.score:.2f}), loss {hard.loss:.2f}'
        )
    if args.corrupted:
        wrong = [label for label in spoilt if label['given'] is not None]
        removed = [label for label in spoilt if label['given'] is None]
        for of_list, labels, ranked in (
            ('wrong labels', wrong, report.boxes),
            ('removed labels', removed, report.spots),
        ):
            first = len(ranked) // 10
            found = count_found(ranked, labels, first)
            print(
                f'{found} of {len(labels)} {of_list} are among the first {first} of '
                f'{len(ranked)}.'
            )


if __name__ == '__main__':
    main()
