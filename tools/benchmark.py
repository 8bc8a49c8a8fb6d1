"""Time and memory of training with several configs, side by side.

Without configs: VGG16 and VGG_CNN_M_1024 with random sampling, MMDetection's
OHEMSampler and mmdet_ohem.OHEMSampler (the paper's Table 2).
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from studies import data_side, iterations
from tqdm import tqdm

from mmdet_ohem.whole_file import whole_file

NUMBERS_OF_ROIS = (500, 1000, 2000, 4000, 8000)
PARTS = ('iteration', 'rois', 'selection', 'data')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'configs', nargs='*', help='configs; all are held against the first'
    )
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=PARTS,
        default=['iteration'],
        help='iteration: a training iteration and its stages. rois: the same for 500 '
        'to 8000 RoIs, with a plot. selection: NMS and top B alone. data: pipeline, '
        "workers' memory (default: iteration)",
    )
    parser.add_argument('--images', help='folder of pictures (default: drawn ones)')
    parser.add_argument('--store', help='their proposals (default: random boxes)')
    parser.add_argument(
        '--num-rois', type=int, default=2000, help='proposals of an image (2000)'
    )
    parser.add_argument('--rounds', type=int, default=5, help='counted iterations (5)')
    parser.add_argument(
        '--device',
        choices=['cpu', 'cuda'],
        default='cuda' if torch.cuda.is_available() else 'cpu',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/benchmark'),
        help='folder for the tables, JSON and plots (default: work_dirs/benchmark)',
    )
    return parser.parse_args()


def machine(device: str) -> str:
    """What the numbers are of."""
    name = platform.processor() or platform.machine()
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            name = line.partition(':')[2].strip()
            break
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    return f'{name}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}'


def contenders(configs: list[str]) -> list[iterations.Contender]:
    if not configs:
        return iterations.paper_contenders(Path(__file__).parent.parent / 'configs')
    for path in configs:
        if not Path(path).is_file():
            raise SystemExit(f'There is no config {path}.')
    found = [
        iterations.Contender(Path(path).stem, Config.fromfile(path), 'given')
        for path in configs
    ]
    for path, contender in zip(configs, found, strict=True):
        if 'roi_head' not in contender.config.model:
            raise SystemExit(f'{path} has no model.roi_head, so no RoIs to time.')
    return found


def time_iterations(args: argparse.Namespace, num_rois: int, rounds: int):
    rivals = contenders(args.configs)
    batch_of = iterations.BatchMaker(num_rois, args.images, args.store)
    turns = iterations.run(rivals, batch_of, rounds, args.device)
    total = len(rivals) * (iterations.WARM_UP[args.device] + rounds)
    with tqdm(turns, f'{num_rois} RoIs', total, unit='iteration') as progress:
        for contender in progress:
            progress.set_postfix_str(contender.name)
    return rivals


def measure(args: argparse.Namespace) -> tuple[list[str], dict]:
    """Markdown sections, and the same for JSON."""
    sections, record = [], {'machine': machine(args.device), 'command': sys.argv}
    if 'iteration' in args.parts:
        rivals = time_iterations(args, args.num_rois, args.rounds)
        source = 'drawn images' if args.images is None else args.images
        boxes = 'random boxes' if args.store is None else args.store
        sections.append(
            f'{args.num_rois} RoIs an image ({source}, {boxes}), '
            f'{args.rounds} iterations of each:\n\n{iterations.tabulate(rivals)}'
        )
        record['iteration'] = [rival.to_dict() for rival in rivals]
    if 'rois' in args.parts:
        rounds = min(args.rounds, 2)
        sweep = {n: time_iterations(args, n, rounds) for n in NUMBERS_OF_ROIS}
        iterations.plot_by_rois(sweep, args.out / 'rois.png')
        sections += [
            f'{n} RoIs an image:\n\n{iterations.tabulate(rivals)}'
            for n, rivals in sweep.items()
        ]
        record['rois'] = {
            n: [r.to_dict() for r in rivals] for n, rivals in sweep.items()
        }
    if 'selection' in args.parts:
        times = list(tqdm(iterations.time_selection(args.device), 'selection', 3))
        table = iterations.tabulate_selection(times)
        sections.append(f'Selection alone, on {args.device}:\n\n{table}')
        record['selection'] = [vars(row) for row in times]
    if 'data' in args.parts:
        folder = None if args.images is None else Path(args.images)
        results = data_side.measure(folder=folder)
        sections.append(data_side.tabulate(results))
        record['data'] = results
    return sections, record


def main() -> None:
    args = parse_args()
    if args.rounds < 1 or args.num_rois < 1:
        raise SystemExit('--rounds and --num-rois must be 1 or more.')
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        sections, record = measure(args)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit('\nInterrupted; nothing was saved.') from None
    text = '\n\n'.join([record['machine'], *sections]) + '\n'
    for name, written in (
        ('benchmark.md', text),
        ('benchmark.json', json.dumps(record, indent=2)),
    ):
        with whole_file(args.out / name) as partial:
            partial.write_text(written)
    print(f'\n{text}\nSaved in {args.out}.')


if __name__ == '__main__':
    main()
