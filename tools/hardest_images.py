"""List the training images and labels that stay hard: look for wrong labels there."""

import argparse
import json
import re
from pathlib import Path

from mmdet.registry import DATASETS, MODELS
from mmengine.registry import init_default_scope
from tqdm import tqdm

from mmdet_ohem.check_data import check_data
from mmdet_ohem.corrupt_labels import count_found
from mmdet_ohem.hardest_images import find_hardest
from mmdet_ohem.hardest_page import write_report
from mmdet_ohem.launch import add_config_arguments, load_config


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
    parser.add_argument('--device', default='cpu')
    add_config_arguments(parser)
    return parser.parse_args()


def find_checkpoints(paths: list[str]) -> list[str]:
    """Files as they are; of a work dir its iter_N.pth or epoch_N.pth by N."""
    found = []
    for path in map(Path, paths):
        numbered = {
            int(match.group(1)): str(file)
            for file in path.glob('*.pth')
            if (match := re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', file.name))
        }
        files = (
            [numbered[n] for n in sorted(numbered)] if path.is_dir() else [str(path)]
        )
        if not files or not Path(files[0]).is_file():
            raise SystemExit(f'There is no checkpoint {path}, nor one in it.')
        found += files
    return found


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_data(cfg, ('train',))
    if 'roi_head' not in cfg.model:
        raise SystemExit(
            f'{args.config} has no model.roi_head, whose RoIs could be ranked.'
        )
    checkpoints = find_checkpoints(args.checkpoints)
    init_default_scope('mmdet')
    detector = MODELS.build(cfg.model).to(args.device)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    try:
        report = find_hardest(
            detector, dataset, checkpoints, progress=lambda passes: tqdm(passes)
        )
        write_report(report, cfg.work_dir, args.num)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    print(f'Wrote {cfg.work_dir}/hardest.html, hardest.json and hardest.csv.')
    for hard in report.boxes[:5]:
        print(
            f'  {hard.img_id} {hard.box}: {hard.label}, the network says {hard.says} '
            f'({hard.score:.2f}), loss {hard.loss:.2f}'
        )
    if args.corrupted:
        spoilt = json.loads(Path(args.corrupted).read_text())
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
