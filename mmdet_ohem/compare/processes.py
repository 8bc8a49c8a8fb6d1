"""The processes of a comparison: several trainings and tests beside each other."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmdet_ohem.compare.run import Run
from mmdet_ohem.runs import start_tool

BAR_SECONDS = 2  # between two looks at the logs


@dataclass
class Job:
    """A run that waits for its training or its test, or is at it.

    Args:
        run: whose folder gets the logs.
        step: 'train' or 'test'.
        place: the environment variables of its process.
        peak_mb: of its memory so far, where the system tells it.
        bar: how far the training is, see `compare`.
    """

    run: Run
    step: str
    place: dict[str, str] | None = None
    process: subprocess.Popen | None = None
    peak_mb: float | None = None
    bar: Any = None

    @property
    def log(self) -> Path:
        return self.run.folder / f'{self.step}.log'

    def start(self, tools: Path, place: dict[str, str]) -> None:
        """Start tools/train.py or tools/test.py in a process of its own."""
        run, self.place = self.run, place
        command = [str(tools / f'{self.step}.py'), str(run.config_file)]
        if self.step == 'train':
            command += ['--resume', '--work-dir', str(run.folder)]
        else:
            command += [run.checkpoint, '--work-dir', str(run.folder / 'test')]
        with open(self.log, 'a') as log:
            self.process = start_tool(
                command, stdout=log, stderr=log, env=dict(os.environ, **place)
            )

    def watch_memory(self) -> None:
        """Keep the peak memory of the process, where the system tells it (Linux)."""
        try:
            status = Path(f'/proc/{self.process.pid}/status').read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith('VmHWM:'):
                peak_mb = int(line.split()[1]) / 1024
                self.peak_mb = max(self.peak_mb or 0, peak_mb)

    def move_bar(self, bar: Callable) -> None:
        """Show how far the training is, on a bar of its own."""
        if self.step != 'train':
            return
        done = self.run.num_done()
        if self.bar is None:
            self.bar = bar(
                desc=self.run.name,
                total=self.run.length,
                initial=done,
                unit=self.run.unit,
                smoothing=0,  # the time left by the mean so far: the log is read rarely
                leave=False,
            )
        self.bar.n = done
        self.bar.refresh()

    def finish(self) -> None:
        """Keep what the step that has ended gave.

        Raises:
            RuntimeError: the process failed, the training left no checkpoint, or the
                test gave no mAP.
        """
        if self.bar is not None:
            self.bar.close()
        if self.process.returncode != 0:
            raise RuntimeError(f'{self.run.name} failed; see {self.log}.')
        if self.step == 'train':
            if self.run.checkpoint is None:
                raise RuntimeError(
                    f'{self.run.name} left no whole checkpoint; see {self.log}.'
                )
            if self.peak_mb is not None:
                self.run.logs.save_highest(peak_mb=self.peak_mb)
        else:
            self.run.save_result()

    def progress(self) -> str:
        return self.run.progress() if self.step == 'train' else f'{self.run.name}: test'


def places(jobs: int | None) -> list[dict[str, str]]:
    """The environment variables of each run that goes at the same time."""
    count = torch.cuda.device_count()
    if count == 0:
        jobs = jobs or 1
        # On a busy machine OpenMP's threads wait for each other, and whoever shares one
        # says how many they want.
        share = max(1, (os.cpu_count() or 1) // jobs)
        threads = os.environ.get('OMP_NUM_THREADS') or str(share)
        return [dict(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)] * jobs
    gpus = _visible_gpus(count)
    jobs = jobs or len(gpus)
    return [dict(CUDA_VISIBLE_DEVICES=gpus[i % len(gpus)]) for i in range(jobs)]


def _visible_gpus(count: int) -> list[str]:
    """The GPUs that this process may see, or their MIG slices, by whatever name.

    Args:
        count: those that CUDA counts. It counts one MIG slice, however many there are.
    """
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    if named is not None:
        gpus = named.split(',')
        return gpus if gpus[0].startswith('MIG-') else gpus[:count]
    slices = _mig_slices() if count == 1 else []
    return slices or [str(i) for i in range(count)]


def _mig_slices() -> list[str]:
    """The names of all MIG slices of this machine."""
    try:
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True)
    except OSError:
        return []
    return re.findall(r'UUID: (MIG-[^)\s]+)', listed.stdout)


def run_all(
    runs: list[Run],
    tools: Path,
    free: list[dict[str, str]],
    say: Callable[[str], None],
    bar: Callable | None = None,
) -> list[str]:
    """Train and test, as many at a time as there are places.

    Args:
        free: see `places`.
        say, bar: see `compare`.

    Returns:
        A sentence for each run that failed.
    """
    waiting = [Job(run, 'test' if run.is_trained else 'train') for run in runs]
    running: list[Job] = []
    failed, free = [], list(free)
    start = time.monotonic()
    try:
        while waiting or running:
            while waiting and free:
                job = waiting.pop(0)
                say(f'{job.run.name}: {job.step}')
                job.start(tools, free.pop(0))
                running.append(job)
            _wait(running, start, len(waiting), say, bar)
            for job in [job for job in running if job.process.returncode is not None]:
                running.remove(job)
                free.append(job.place)
                try:
                    job.finish()
                except RuntimeError as error:
                    failed.append(str(error))
                    say(str(error))
                else:
                    if job.step == 'train':
                        waiting.insert(0, Job(job.run, 'test'))
                    else:
                        say(f'{job.run.name} is done.')
    finally:
        for job in running:
            if job.bar is not None:
                job.bar.close()
            job.process.terminate()
        for job in running:
            job.process.wait()
    return failed


def _wait(
    running: list[Job],
    start: float,
    num_waiting: int,
    say: Callable[[str], None],
    bar: Callable | None,
) -> None:
    """Until a process ends; bars, or a line now and then, say how far the runs are."""
    for job in running:
        if job.step == 'train':
            job.run.logs.save_highest(runs_at_a_time=len(running))
    said = time.monotonic()
    while all(job.process.poll() is None for job in running):
        for job in running:
            if job.step == 'train':
                job.watch_memory()
        time.sleep(0.5)
        now = time.monotonic()
        if bar is not None:
            if now - said > BAR_SECONDS:
                said = now
                for job in running:
                    job.move_bar(bar)
            continue
        if now - said < min(120, max(15, (now - start) / 20)):
            continue
        said = now
        minutes, seconds = divmod(int(now - start), 60)
        parts = [job.progress() for job in running]
        parts += [f'{num_waiting} to go'] if num_waiting else []
        say(f'  {minutes}:{seconds:02d}  ' + '; '.join(parts))
