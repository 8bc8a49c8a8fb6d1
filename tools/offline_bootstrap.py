"""Train with offline bootstrapping, the rival that OHEM replaced: train on a set of
proposals, freeze the detector, choose the background that it gets most wrong, train on.

All rounds together are as long as a training of the config. Each starts from the
weights of the one before, with the config's whole schedule in little, and samples at
random (a quarter of foreground, no lower bound) from what the pass before it chose.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

from mmengine.config import Config
from studies.active_set import write_active_set
from tqdm import tqdm

from mmdet_ohem.checkpoint import is_trained, newest_checkpoint
from mmdet_ohem.compare import read_test, set_sampler
from mmdet_ohem.config import as_list, dicts_of, file_text, type_name
from mmdet_ohem.datasets import STORE_STEP, with_step
from mmdet_ohem.runs import (
    add_budget_argument,
    add_config_arguments,
    budget_unit,
    check_data,
    errors_as_sentences,
    load_config,
    run_tool,
    set_budget,
)
from mmdet_ohem.whole_file import whole_file

TOOLS = Path(__file__).parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a detector with stored proposals')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--rounds', type=int, default=3, help='trainings (default: 3)')
    add_budget_argument(parser)
    add_config_arguments(parser, 'work_dirs/offline_bootstrap/<name of the config>')
    return parser.parse_args()


def train_seed(
    config: Config, seed: int, rounds: int, length: int, folder: Path
) -> dict:
    """Train with one seed, and test the last round.

    Args:
        config: with the sampler of the rounds.
        length: iterations or epochs of a round.
        folder: gets a work dir for each round.

    Returns:
        seed, mAP, and the seconds that the frozen passes took.
    """
    whole, config = config, copy.deepcopy(config)
    set_budget(config, length)
    (sampler,) = [stage.sampler for stage in as_list(config.model.train_cfg.rcnn)]
    seconds = 0.0
    for number in range(1, rounds + 1):
        work_dir, file = folder / f'round{number}', folder / f'round{number}.py'
        config.randomness = dict(seed=rounds * seed + number - 1)
        with whole_file(file) as partial:
            partial.write_text(file_text(config))
        if not is_trained(work_dir, length):
            run_tool(TOOLS / 'train.py', file, '--work-dir', work_dir, '--resume')
        config.load_from = newest_checkpoint(work_dir)[0]
        if number < rounds:
            start = time.monotonic()
            store = folder / f'proposals{number + 1}'
            write_active_set(whole, config.load_from, store, 2 * sampler.num, tqdm)
            seconds += time.monotonic() - start
            config.train_dataloader = with_step(
                whole.train_dataloader, STORE_STEP, store=str(store)
            )
    run_tool(TOOLS / 'test.py', file, config.load_from, '--work-dir', folder / 'test')
    metric, scores = read_test(folder / 'test', f'seed {seed}')
    return dict(seed=seed, mAP=scores[metric], frozen_seconds=seconds)


def table(results: list[dict], rounds: int) -> str:
    scores = [result['mAP'] for result in results]
    seconds = statistics.mean(result['frozen_seconds'] for result in results)
    return (
        '| rounds | seeds | mAP | lowest to highest | frozen passes of a training |\n'
        '|---|---|---|---|---|\n'
        f'| {rounds} | {len(scores)} | {statistics.mean(scores):.3f} '
        f'| {min(scores):.3f} to {max(scores):.3f} | {seconds:.0f} s |\n'
    )


def main() -> None:
    args = parse_args()
    folder = Path(
        args.work_dir or Path('work_dirs/offline_bootstrap', Path(args.config).stem)
    ).absolute()
    with errors_as_sentences(RuntimeError):
        cfg = load_config(args)
        set_sampler(cfg, 'random-bg0')
        if STORE_STEP not in map(type_name, dicts_of(cfg.train_dataloader)):
            raise ValueError(
                f'{args.config} has no step mmdet_ohem.{STORE_STEP}, of whose '
                'proposals a set could be made: give a detector without RPN.'
            )
        check_data(cfg, ('train', 'test'))
        budget = args.budget or cfg.train_cfg[budget_unit(cfg)]
        if not 1 <= args.rounds <= budget:
            raise ValueError(f'--rounds must be from 1 to the budget, {budget}.')
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        results = [
            train_seed(
                cfg, seed, args.rounds, budget // args.rounds, folder / f'seed{seed}'
            )
            for seed in dict.fromkeys(args.seeds)
        ]
        for name, text in (
            ('results.json', json.dumps(results, indent=2)),
            ('table.md', table(results, args.rounds)),
        ):
            with whole_file(folder / name) as partial:
                partial.write_text(text)
    print(f'\n{(folder / "table.md").read_text()}\nSaved in {folder}.')


if __name__ == '__main__':
    main()
