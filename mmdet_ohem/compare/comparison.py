"""Train one config with several samplers and seeds, and tabulate what came out."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mmengine.config import Config

from mmdet_ohem.compare.config_changes import make_run
from mmdet_ohem.compare.learning_rate import (
    best_rates,
    rates_table,
    split_config,
)
from mmdet_ohem.compare.processes import places, run_all
from mmdet_ohem.compare.report import write_report
from mmdet_ohem.compare.run import Run
from mmdet_ohem.whole_file import only_one, whole_file


def compare(
    config: Config,
    samplers: list[str],
    seeds: list[int],
    folder: str | os.PathLike,
    tools: Path,
    budget: int | None = None,
    jobs: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    bar: Callable | None = None,
    lrs: Sequence[float] = (),
    select: tuple[str, str] | None = None,
) -> list[dict]:
    """Train and test what is not yet; a run that was cut off goes on from its last
    checkpoint, and comes out as if it had not been.

    Args:
        config: of a two-stage detector whose train_cfg.rcnn has a sampler.
        samplers: keys of ``SAMPLERS``.
        seeds: ``randomness.seed`` of the runs.
        folder: gets one folder per run and what `write_report` writes.
        tools: the folder with train.py and test.py.
        budget: as in `make_run`.
        jobs: runs at a time: over the GPUs there are, or sharing the CPU cores. None:
            one for each GPU, or one.
        say: is told in one line after the other how far the runs are.
        bar: tqdm, or what takes its arguments and has its n, refresh() and close(), for
            a terminal: each run that trains gets a bar with the time left, in place of
            lines.
        lrs: learning rates. The best of them for each sampler is found first, by one
            run each with the first of the seeds on the split of ``select``.
        select: the annotation files of `split_config`, to train on and to test on.

    Returns:
        One dict per run: sampler, seed, metric and mAP, AP50 and AP75 where the mAP is
        a mean over IoUs, loss_all_rois, seconds_per_iteration, runs_at_a_time (the most
        that went beside each other while it trained, itself counted), memory_mb; and of
        a config with
        ``background_dataloader`` what BackgroundMetric says of false positives at a
        recall and of false alarms; and lr, if it was chosen.

    Raises:
        ValueError: the config has no sampler to change; or see `split_config`.
        RuntimeError: runs failed (the others are finished first), or the folder is
            another comparison's; the message says where to look.
    """
    folder = Path(folder)
    split = split_config(config, *select) if select else None
    run_each = partial(_results, tools=tools, jobs=jobs, say=say, bar=bar)
    with only_one(folder, 'a comparison'):
        chosen: dict[str, float] = {}
        if split is not None:
            rates = run_each(
                _candidates(split, samplers, seeds[0], lrs, folder, budget)
            )
            chosen = best_rates(rates)
            with whole_file(folder / 'learning_rates.md') as writing:
                writing.write_text(rates_table(rates, *select))
            say((folder / 'learning_rates.md').read_text())
        runs = [
            Run(
                sampler,
                seed,
                make_run(config, sampler, seed, budget, chosen.get(sampler)),
                folder / f'{sampler}-seed{seed}',
                chosen.get(sampler),
            )
            for seed in seeds
            for sampler in samplers
        ]
        results = run_each(runs)
    curves = {(run.sampler, run.seed): run.loss_curve() for run in runs}
    write_report(results, curves, folder)
    return results


def _candidates(
    split: Config,
    samplers: list[str],
    seed: int,
    lrs: Sequence[float],
    folder: Path,
    budget: int | None,
) -> list[Run]:
    """A run for each sampler and learning rate, on the split."""
    return [
        Run(
            sampler,
            seed,
            make_run(split, sampler, seed, budget, lr),
            folder / 'learning_rates' / f'{sampler}-lr{lr:g}',
            lr,
        )
        for lr in lrs
        for sampler in samplers
    ]


def _results(
    runs: list[Run],
    tools: Path,
    jobs: int | None,
    say: Callable[[str], None],
    bar: Callable | None,
) -> list[dict]:
    """Train and test what is not yet."""
    for run in runs:
        run.prepare()
    unfinished = [run for run in runs if not run.is_finished]
    failed = run_all(unfinished, tools, places(jobs), say, bar)
    if failed:
        failed.append('The same command goes on where it stopped.')
        raise RuntimeError('\n'.join(failed))
    return [
        dict(
            json.loads(run.logs.result_file.read_text()),
            **({} if run.lr is None else {'lr': run.lr}),
        )
        for run in runs
    ]
