"""Train one config with several samplers and seeds, and tabulate what came out."""

import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config

from mmdet_ohem.compare_configs import budget_unit, make_run
from mmdet_ohem.compare_report import write_report
from mmdet_ohem.curves import LOSS_ALL_ROIS, read_curve
from mmdet_ohem.whole_file import whole_file

# The end of a training, over whose log the loss over all RoIs is averaged.
LAST_PART = 0.25
LOSS_OF_FIRST_STAGE = 'mining/s0.loss_all_rois'
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass
class Run:
    """One training and test of one sampler with one seed, in a folder of its own."""

    sampler: str
    seed: int
    config: Config
    folder: Path
    peak_mb: float | None = None

    @property
    def name(self) -> str:
        return f'{self.sampler}, seed {self.seed}'

    @property
    def config_file(self) -> Path:
        # Not in the folder: there MMEngine writes what it made of a config.
        return self.folder.with_name(f'{self.folder.name}.py')

    @property
    def result_file(self) -> Path:
        return self.folder / 'result.json'

    @property
    def length(self) -> int:
        return self.config.train_cfg[budget_unit(self.config)]

    @property
    def is_trained(self) -> bool:
        """Whether the checkpoint of the last iteration or epoch is there."""
        last = self.folder / 'last_checkpoint'
        name = Path(last.read_text()).stem if last.exists() else ''
        return name.rpartition('_')[2] == str(self.length)

    def prepare(self) -> None:
        """Write the config of this run.

        How a run is tested may change until it has been.

        Raises:
            RuntimeError: the folder has a run of another config.
        """
        path = self.config_file
        if path.exists() and path.read_text() != self.config.pretty_text:
            there = _training_part(Config.fromfile(path))
            if self.result_file.exists() or there != _training_part(self.config):
                raise RuntimeError(
                    f'{path} is of another comparison: choose another --work-dir, or '
                    f'remove it and the folder {self.folder.name} beside it.'
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(self.config.pretty_text)

    def progress(self) -> str:
        curve = self._logged('loss')
        if not curve:
            return self.name
        step, loss = list(curve.items())[-1]
        of = f'/{self.length}' if 'max_iters' in self.config.train_cfg else ''
        return f'{self.name}: iteration {step}{of}, loss {loss:.3f}'

    def watch_memory(self, pid: int) -> None:
        """Keep the peak memory of a process, where the system tells it (Linux)."""
        try:
            status = Path(f'/proc/{pid}/status').read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith('VmHWM:'):
                self.peak_mb = max(self.peak_mb or 0, int(line.split()[1]) / 1024)

    def save_result(self) -> None:
        """Write what the logs of the training and the last test say.

        Raises:
            RuntimeError: the test gave no mAP.
        """
        logs = sorted((self.folder / 'test').glob('*/*.json'))
        scores = json.loads(logs[-1].read_text()) if logs else {}
        # coco/bbox_mAP, pascal_voc/mAP, lvis/bbox_AP: the first is that of the boxes.
        metric = next((name for name in scores if name.endswith('AP')), None)
        if metric is None:
            given = ', '.join(scores) or 'nothing'
            raise RuntimeError(
                f'The test of {self.name} gave {given}, but no mAP: set test_evaluator '
                'to one that does.'
            )
        result = dict(
            sampler=self.sampler,
            seed=self.seed,
            metric=metric,
            mAP=scores[metric],
            loss_all_rois=self._loss_at_the_end(),
            seconds_per_iteration=statistics.median(self._logged('time').values()),
            # Of the tensors on a GPU, or of the process.
            memory_mb=max(self._logged('memory').values(), default=self._peak()),
        )
        with whole_file(self.result_file) as partial:
            partial.write_text(json.dumps(result))

    def save_peak(self) -> None:
        """Before the test, which a later call may have to make."""
        if self.peak_mb is not None:
            with whole_file(self.folder / 'peak_mb') as partial:
                partial.write_text(str(self.peak_mb))

    def _peak(self) -> float | None:
        path = self.folder / 'peak_mb'
        return float(path.read_text()) if path.exists() else None

    def loss_curve(self) -> dict[int, float]:
        """The loss over all RoIs by iteration; of a cascade that of its first stage.

        Nothing for focal loss, which is no measure for the others.
        """
        if self.sampler == 'focal':
            return {}
        return self._logged(LOSS_ALL_ROIS) or self._logged(LOSS_OF_FIRST_STAGE)

    def _loss_at_the_end(self) -> float | None:
        curve = self.loss_curve()
        first = (1 - LAST_PART) * max(curve, default=0)
        losses = [loss for step, loss in curve.items() if step > first]
        return statistics.mean(losses) if losses else None

    def _logged(self, key: str) -> dict[int, float]:
        try:
            return read_curve(self.folder, key)
        except (FileNotFoundError, ValueError):  # or memory, which only GPUs have
            return {}


def compare(
    config: Config,
    samplers: list[str],
    seeds: list[int],
    folder: str | os.PathLike,
    tools: Path,
    budget: int | None = None,
    jobs: int | None = None,
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

    Returns:
        One dict per run: sampler, seed, metric and mAP, loss_all_rois,
        seconds_per_iteration, memory_mb.

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
    for run in runs:
        run.prepare()
    failed = _run_all(
        [run for run in runs if not run.result_file.exists()], tools, _places(jobs)
    )
    if failed:
        failed.append('The same command goes on where it stopped.')
        raise RuntimeError('\n'.join(failed))
    results = [json.loads(run.result_file.read_text()) for run in runs]
    curves = {(run.sampler, run.seed): run.loss_curve() for run in runs}
    write_report(results, curves, folder)
    return results


def _training_part(config: Config) -> dict:
    return {k: v for k, v in config.to_dict().items() if not k.startswith('test')}


def _run_all(runs: list[Run], tools: Path, places: list[dict]) -> list[str]:
    """Train and test; returns a sentence for each run that failed."""
    waiting = [(run, 'test' if run.is_trained else 'train') for run in runs]
    running: dict[subprocess.Popen, tuple[Run, str, dict]] = {}
    failed = []
    start = time.monotonic()
    free = list(places)
    try:
        while waiting or running:
            while waiting and free:
                run, step = waiting.pop(0)
                place = free.pop(0)
                process = _start(run, step, tools, place)
                running[process] = run, step, place
            _wait(running, start, len(waiting))
            for process in [p for p in running if p.returncode is not None]:
                run, step, place = running.pop(process)
                free.append(place)
                log = run.folder / f'{step}.log'
                try:
                    if process.returncode != 0:
                        raise RuntimeError(f'{run.name} failed; see {log}.')
                    if step == 'train':
                        run.save_peak()
                        waiting.insert(0, (run, 'test'))
                    else:
                        run.save_result()
                        print(f'{run.name} is done.', flush=True)
                except RuntimeError as error:
                    failed.append(str(error))
                    print(error, flush=True)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failed


def _places(jobs: int | None) -> list[dict]:
    """The environment variables of each run that goes at the same time."""
    count = torch.cuda.device_count()
    if count == 0:
        jobs = jobs or 1
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        return [dict(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)] * jobs
    # Those that this process may see, by whatever name.
    gpus = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(count))))
    gpus = gpus.split(',')[:count]
    return [dict(CUDA_VISIBLE_DEVICES=gpus[i % count]) for i in range(jobs or count)]


def _start(run: Run, step: str, tools: Path, place: dict) -> subprocess.Popen:
    command = [sys.executable, str(tools / f'{step}.py'), str(run.config_file)]
    if step == 'train':
        command += ['--resume', '--work-dir', str(run.folder)]
    else:
        checkpoint = (run.folder / 'last_checkpoint').read_text()
        command += [checkpoint, '--work-dir', str(run.folder / 'test')]
    print(f'{run.name}: {step}', flush=True)
    with open(run.folder / f'{step}.log', 'a') as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=dict(os.environ, **place),
            preexec_fn=_end_with_parent if sys.platform == 'linux' else None,
        )


def _end_with_parent() -> None:
    """In a child: a comparison that is killed leaves no training behind, which the
    next one would have beside its own."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(running: dict, start: float, num_waiting: int) -> None:
    """Until a process ends; now and then a line says how far the runs are."""
    said = time.monotonic()
    while all(process.poll() is None for process in running):
        for process, (run, step, _) in running.items():
            if step == 'train':
                run.watch_memory(process.pid)
        time.sleep(0.5)
        now = time.monotonic()
        if now - said < min(120, max(15, (now - start) / 20)):
            continue
        said = now
        minutes, seconds = divmod(int(now - start), 60)
        parts = [
            run.progress() if step == 'train' else f'{run.name}: test'
            for run, step, _ in running.values()
        ]
        parts += [f'{num_waiting} to go'] if num_waiting else []
        print(f'  {minutes}:{seconds:02d}  ' + '; '.join(parts), flush=True)
