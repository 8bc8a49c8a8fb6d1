"""Train one config with several samplers and seeds, and tabulate what came out."""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

# What replaces `assigner.neg_iou_thr` and `sampler` of train_cfg.rcnn; `num` stays the
# config's. Fast R-CNN samples a quarter of foreground (Girshick, ICCV 2015).
SAMPLERS = {
    'random': dict(neg_iou_thr=(0.1, 0.5), type='RandomSampler', pos_fraction=0.25),
    'random-bg0': dict(neg_iou_thr=0.5, type='RandomSampler', pos_fraction=0.25),
    'mmdet-ohem': dict(neg_iou_thr=0.5, type='mmdet.OHEMSampler', pos_fraction=0.25),
    'ohem': dict(neg_iou_thr=0.5, type='mmdet_ohem.OHEMSampler'),
    'ohem-per-label': dict(
        neg_iou_thr=0.5, type='mmdet_ohem.OHEMSampler', nms_per_label=True
    ),
}
LABELS = {
    'random': 'random, bg_lo 0.1 (Fast R-CNN)',
    'random-bg0': 'random, bg_lo 0',
    'mmdet-ohem': "MMDetection's OHEMSampler",
    'ohem': '**mmdet_ohem.OHEMSampler**',
    'ohem-per-label': '**mmdet_ohem.OHEMSampler**, nms_per_label=True',
}
METRICS = ('pascal_voc/mAP', 'coco/bbox_mAP')


@dataclass
class Run:
    """One training of one sampler with one seed, in a folder of its own."""

    config: str
    sampler: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f'{self.sampler}, seed {self.seed}'

    @property
    def config_file(self) -> Path:
        return self.folder / 'run.py'

    @property
    def result_file(self) -> Path:
        return self.folder / 'result.json'

    def prepare(self, cfg_options: list[str]) -> None:
        """Write the config of this run, as a user would have written it.

        Raises:
            RuntimeError: the folder holds a run of other settings, or the config has
                not the one ``train_cfg.rcnn`` whose sampler could be changed.
        """
        rcnn = Config.fromfile(self.config).model.train_cfg.get('rcnn')
        if not isinstance(rcnn, dict) or 'sampler' not in rcnn:
            raise RuntimeError(
                f'{self.config} has no model.train_cfg.rcnn.sampler to compare others '
                'with (a cascade has one for each stage).'
            )
        sampler = dict(_delete_=True, num=rcnn.sampler.num, **SAMPLERS[self.sampler])
        neg_iou_thr = sampler.pop('neg_iou_thr')
        rcnn = dict(assigner=dict(neg_iou_thr=neg_iou_thr), sampler=sampler)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = (
            f'_base_ = {str(Path(self.config).resolve())!r}\n'
            f'randomness = dict(seed={self.seed})\n'
            f'model = dict(train_cfg=dict(rcnn={rcnn!r}))\n'
            '# Evaluated once, after training.\n'
            'val_cfg = val_dataloader = val_evaluator = None\n'
        )
        settings = Config.fromfile(self.config).to_dict()
        settings = json.dumps([text, settings, list(cfg_options)], default=str)
        path = self.folder / 'settings.json'
        if path.exists() and path.read_text() != settings:
            raise RuntimeError(
                f'{self.folder} holds a run of other settings (settings.json there): '
                'choose another --work-dir, or remove the folder.'
            )
        _write(self.config_file, text)
        _write(path, settings)

    def losses(self) -> list[dict]:
        """What MMEngine logged of the training, the lines of every start."""
        lines = []
        for log in sorted(self.folder.glob('*/vis_data/scalars.json')):
            # The last line may be half written, by a run that goes on or was killed.
            whole = log.read_text().rpartition('\n')[0]
            lines += [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if 'loss' in line]

    def save_result(self) -> None:
        logs = sorted((self.folder / 'test').glob('*/*.json'))
        scores = json.loads(logs[-1].read_text())
        metric = next((metric for metric in METRICS if metric in scores), None)
        if metric is None:
            raise RuntimeError(
                f'The test of {self.name} gave {", ".join(scores)}, none of which is '
                f'{" or ".join(METRICS)}.'
            )
        seconds = [line['time'] for line in self.losses()]
        result = dict(
            sampler=self.sampler,
            seed=self.seed,
            mAP=scores[metric],
            # A run shorter than the logger's interval logs none.
            seconds_per_iteration=statistics.median(seconds or [math.nan]),
        )
        _write(self.result_file, json.dumps(result))


def compare(
    config: str,
    samplers: list[str],
    seeds: list[int],
    folder: str,
    tools: Path,
    cfg_options: list[str] = (),
    jobs: int = 1,
) -> list[dict]:
    """Train and test what is not yet; a run that was cut off goes on from its last
    checkpoint.

    Args:
        config: a config of a two-stage detector whose train_cfg.rcnn has a sampler.
        samplers: keys of ``SAMPLERS``.
        seeds: ``randomness.seed`` of the runs.
        folder: gets one folder per run, ``table.md`` and ``results.json``.
        tools: the folder with train.py and test.py.
        cfg_options: ``--cfg-options`` for both.
        jobs: runs at a time; they share the CPU cores.

    Returns:
        One dict per run: sampler, seed, mAP, seconds_per_iteration.

    Raises:
        RuntimeError: a run failed, or cannot be made; the message says where to look.
    """
    runs = [
        Run(config, sampler, seed, Path(folder) / f'{sampler}-seed{seed}')
        for seed in seeds
        for sampler in samplers
    ]
    for run in runs:
        run.prepare(cfg_options)
    waiting = [(run, 'train') for run in runs if not run.result_file.exists()]
    running: dict[subprocess.Popen, tuple[Run, str]] = {}
    start = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run, step = waiting.pop(0)
                process = _start(run, step, tools, cfg_options, jobs)
                running[process] = run, step
            _wait(running, start)
            for process in [p for p in running if p.returncode is not None]:
                run, step = running.pop(process)
                if process.returncode != 0:
                    raise RuntimeError(
                        f'{run.name} failed; see {run.folder / step}.log. The same '
                        'command goes on where it stopped.'
                    )
                if step == 'train':
                    waiting.insert(0, (run, 'test'))
                else:
                    run.save_result()
                    print(f'{run.name} is done.', flush=True)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    results = [json.loads(run.result_file.read_text()) for run in runs]
    (Path(folder) / 'results.json').write_text(json.dumps(results, indent=2))
    (Path(folder) / 'table.md').write_text(table(results))
    return results


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f'{path.name}.partial')
    partial.write_text(text)
    os.replace(partial, path)


def _start(
    run: Run, step: str, tools: Path, cfg_options: list[str], jobs: int
) -> subprocess.Popen:
    command = [sys.executable, str(tools / f'{step}.py'), str(run.config_file)]
    if step == 'train':
        command += ['--resume', '--work-dir', str(run.folder)]
    else:
        checkpoint = (run.folder / 'last_checkpoint').read_text()
        command += [checkpoint, '--work-dir', str(run.folder / 'test')]
    if cfg_options:
        command += ['--cfg-options', *cfg_options]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    print(f'{run.name}: {step}', flush=True)
    with open(run.folder / f'{step}.log', 'a') as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _wait(running: dict[subprocess.Popen, tuple[Run, str]], start: float) -> None:
    """Until a process ends; every 15 seconds a line says how far the runs are."""
    said = time.monotonic()
    while all(process.poll() is None for process in running):
        time.sleep(0.5)
        if time.monotonic() - said < 15:
            continue
        said = time.monotonic()
        minutes, seconds = divmod(int(said - start), 60)
        parts = []
        for run, step in running.values():
            losses = run.losses()
            if step == 'test' or not losses:
                parts.append(f'{run.name}: {step}')
            else:
                parts.append(
                    f'{run.name}: iteration {losses[-1]["step"]}, '
                    f'loss {losses[-1]["loss"]:.3f}'
                )
        print(f'  {minutes}:{seconds:02d}  ' + '; '.join(parts), flush=True)


def table(results: list[dict]) -> str:
    """A Markdown table: mean mAP of the seeds and its range, one row per sampler."""
    rows = [
        '| sampler | seeds | mAP | lowest to highest | s / iteration |',
        '|---|---|---|---|---|',
    ]
    for sampler in dict.fromkeys(result['sampler'] for result in results):
        of_sampler = [result for result in results if result['sampler'] == sampler]
        scores = [result['mAP'] for result in of_sampler]
        seconds = statistics.median(r['seconds_per_iteration'] for r in of_sampler)
        rows.append(
            f'| {LABELS[sampler]} | {len(scores)} | {statistics.mean(scores):.3f} '
            f'| {min(scores):.3f} to {max(scores):.3f} | {seconds:.2f} |'
        )
    return '\n'.join(rows) + '\n'
