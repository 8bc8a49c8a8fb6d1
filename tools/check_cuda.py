"""Run on a GPU what the tests on a CPU cannot, and print the tables of docs/speed.md.

Needs no network. Every step has a time limit, and one that fails does not end the
others. It takes ten minutes at most.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
OHEM_VGG16, OHEM_VGGM = (f'fast_rcnn_{net}_ohem_voc07' for net in ('vgg16', 'vggm'))
# One config of every kind.
KINDS = (
    OHEM_VGG16,
    'faster_rcnn_r50_fpn_ohem_coco',
    OHEM_VGGM,
    'cascade_rcnn_r50_fpn_ohem_coco',
    'fast_rcnn_vgg16_voc07',
    'fast_rcnn_vgg16_all_voc07',
    'fast_rcnn_vgg16_ohem_ms_voc07',
    'fast_rcnn_vgg16_ohem_accumulate_voc07',
    'fast_rcnn_small_ohem_lookalikes',
    'faster_rcnn_vgg16_ohem_voc07',
    'rpn_vgg16_voc07',
    'mask_rcnn_r50_fpn_ohem_coco',
    'retinanet_r50_fpn_ohem_coco',
)


@dataclass
class Step:
    """A command, and what became of it.

    Args:
        name: in the table, and of the log.
        command: run in the output folder.
        variables: of its environment.
        work_dir: of a training, whose losses are shown.
    """

    name: str
    command: list
    variables: dict[str, str] = field(default_factory=dict)
    work_dir: Path | None = None
    result: str = 'not run'
    process: subprocess.Popen | None = None

    def start(self, out: Path) -> None:
        with open(out / f'{self.name}.log', 'w') as log:
            self.process = subprocess.Popen(
                [str(word) for word in self.command],
                cwd=out,
                env=dict(os.environ, PYTHONPATH=str(ROOT), **self.variables),
                stdout=log,
                stderr=log,
                start_new_session=True,  # to stop its own processes with it
            )

    def finish(self) -> None:
        """Fill in the result of a process that has ended."""
        status = self.process.returncode
        self.result = 'passed' if status == 0 else f'failed ({status})'
        if status == 0 and self.work_dir is not None:
            losses = _losses(self.work_dir)
            if not math.isfinite(losses[-1]):
                self.result = 'failed'
            self.result += f', loss {losses[0]:.3g} to {losses[-1]:.3g}'

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass
class Stage:
    """Steps that share a time limit.

    Args:
        limit: seconds for all of them.
        at_once: how many run beside each other.
    """

    limit: float
    steps: list[Step]
    at_once: int = 1

    def run(self, out: Path) -> None:
        """Fill in the results of the steps."""
        deadline = time.monotonic() + self.limit
        waiting, running = list(self.steps), []
        try:
            while waiting or running:
                while waiting and len(running) < self.at_once:
                    step = waiting.pop(0)
                    step.start(out)
                    running.append(step)
                time.sleep(0.1)
                is_late = time.monotonic() > deadline
                for step in list(running):
                    status = step.process.poll()
                    if status is None and not is_late:
                        continue
                    running.remove(step)
                    if status is None:
                        step.stop()
                        step.result = f'stopped, the stage had {self.limit:.0f} s'
                    else:
                        step.finish()
                    print(f'{step.name}: {step.result}', flush=True)
                if is_late:
                    return
        finally:
            for step in running:
                step.stop()


def _losses(work_dir: Path) -> list[float]:
    """Those that a training logged."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line['loss'] for line in lines if 'loss' in line]


def stages(out: Path) -> list[Stage]:
    """What a GPU has to show, the most dangerous assumption first."""
    python, tools = sys.executable, ROOT / 'tools'
    make_configs = [python, tools / 'studies' / 'cuda_configs.py', out, *KINDS]

    def train(name: str, config: str, *flags) -> Step:
        command = [python, tools / 'train.py', out / f'{config}.py', *flags]
        work_dir = out / name
        return Step(name, [*command, '--work-dir', work_dir], work_dir=work_dir)

    tests = ['-m', 'pytest', '-q', '-m', 'cuda', ROOT / 'tests' / 'test_cuda.py']
    launcher = ['-m', 'torch.distributed.run', '--nproc_per_node=1']
    iterations = ['--cfg-options', 'train_cfg.max_iters=100']
    checkpoint = out / OHEM_VGG16 / 'iter_10.pth'
    benchmark = [python, tools / 'benchmark.py', '--device', 'cuda', '--rounds', 20]
    r50 = [out / f'r50_{name}.py' for name in ('random_512', 'ohem_512', 'ohem_64')]
    return [
        # Imports the package, and runs an operator of mmcv.
        Stage(50, [Step('configs', make_configs)]),
        Stage(90, [Step('tests', [python, *tests])]),
        Stage(120, [train(name, name) for name in KINDS], at_once=5),
        Stage(
            60,
            [
                train('float16_vgg16', OHEM_VGG16, '--amp', *iterations),
                train('float16_vggm', OHEM_VGGM, '--amp', *iterations),
            ],
            at_once=2,
        ),
        Stage(
            50,
            [
                Step(
                    'nccl',
                    [python, *launcher, tools / 'train.py', out / f'{OHEM_VGGM}.py']
                    + ['--launcher', 'pytorch', '--work-dir', out / 'nccl'],
                ),
                Step(
                    'checkpoint_on_cpu',
                    [python, tools / 'test.py', out / f'{OHEM_VGG16}.py', checkpoint],
                    dict(CUDA_VISIBLE_DEVICES=''),
                ),
            ],
            at_once=2,
        ),
        Stage(
            130,
            [
                Step(
                    'benchmark_vgg',
                    [*benchmark, '--parts', 'iteration', 'selection']
                    + ['--out', out / 'benchmark_vgg'],
                )
            ],
        ),
        Stage(
            90,
            [
                Step(
                    'benchmark_r50',
                    [*benchmark, *r50, '--out', out / 'benchmark_r50'],
                )
            ],
        ),
    ]


def report(plan: list[Stage], out: Path) -> str:
    """The results of all steps, and the benchmark's tables."""
    lines = ['| step | result |', '|---|---|']
    lines += [f'| {step.name} | {step.result} |' for s in plan for step in s.steps]
    tables = [path.read_text() for path in sorted(out.glob('benchmark_*/*.md'))]
    return '\n\n'.join(['\n'.join(lines), *tables])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/check_cuda'),
        help='folder for logs and tables (default: work_dirs/check_cuda)',
    )
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            'tools/check_cuda.py measures on a CUDA GPU, and PyTorch '
            f'{torch.__version__} sees none here.'
        )
    # A new folder every time: no table of an earlier run can pass for one of this.
    out = args.out.absolute() / time.strftime('%Y%m%d_%H%M%S')
    out.mkdir(parents=True)
    plan = stages(out)
    try:
        for stage in plan:
            stage.run(out)
    except KeyboardInterrupt:
        print('Interrupted.')
    text = report(plan, out)
    (out / 'report.md').write_text(text)
    print(f'\n{text}\nLogs and tables are in {out}.')
    results = [step.result for stage in plan for step in stage.steps]
    if not all(result.startswith('passed') for result in results):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
