"""Train one config with several samplers and seeds, and tabulate what came out."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config

from mmdet_ohem.compare.config_changes import make_run
from mmdet_ohem.compare.processes import places, run_all
from mmdet_ohem.compare.report import write_report
from mmdet_ohem.compare.run import Run
from mmdet_ohem.whole_file import only_one


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

    Returns:
        One dict per run: sampler, seed, metric and mAP, loss_all_rois,
        seconds_per_iteration, runs_at_a_time (the most that went beside each other
        while it trained, itself counted), memory_mb; and of a config with
        ``background_dataloader`` what BackgroundMetric says of false positives at a
        recall and of false alarms.

    Raises:
        ValueError: the config has no sampler to change.
        RuntimeError: runs failed (the others are finished first), or the folder is
            another comparison's; the message says where to look.
    """
    folder = Path(folder)
    runs = [
        Run(
            sampler,
            seed,
            make_run(config, sampler, seed, budget),
            folder / f'{sampler}-seed{seed}',
        )
        for seed in seeds
        for sampler in samplers
    ]
    with only_one(folder, 'a comparison'):
        for run in runs:
            run.prepare()
        unfinished = [run for run in runs if not run.is_finished]
        failed = run_all(unfinished, tools, places(jobs), say, bar)
    if failed:
        failed.append('The same command goes on where it stopped.')
        raise RuntimeError('\n'.join(failed))
    results = [json.loads(run.logs.result_file.read_text()) for run in runs]
    curves = {(run.sampler, run.seed): run.loss_curve() for run in runs}
    write_report(results, curves, folder)
    return results
