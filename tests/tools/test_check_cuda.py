"""What can be shown of tools/check_cuda.py without a GPU."""

import os
import subprocess
import sys
import time

import check_cuda
import pytest
from check_cuda import Stage, Step
from mmengine.config import Config
from studies import cuda_configs
from support.tools import ROOT, run_tool_here


def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match='measures on a CUDA GPU, .* sees none here.'):
        run_tool_here('tools/check_cuda.py', '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_make_cuda_ends_with_an_error():
    command = ['make', '-s', 'cuda', f'PYTHON={sys.executable}']
    # Under `make test` the variables of the outer make would change what is printed.
    alone = {k: v for k, v in os.environ.items() if not k.startswith('MAKE')}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)
    assert done.returncode != 0 and done.stdout == ''
    sentence, of_make = done.stderr.strip().splitlines()
    assert sentence.endswith('sees none here.') and of_make.startswith('make: ***')


def step(name: str, code: str, **variables: str) -> Step:
    return Step(name, [sys.executable, '-c', code], variables)


def test_a_step_that_fails_or_hangs_does_not_end_the_others(tmp_path):
    hangs = 'import subprocess; subprocess.run(["sleep", "60"])'
    plan = [
        Stage(30, [step('fails', 'print("why"); raise SystemExit(3)')]),
        Stage(1, [step('hangs', hangs), step('waits', '')]),
        Stage(30, [step('passes', 'import os; print(os.environ["X"])', X='7')]),
    ]
    start = time.monotonic()
    for stage in plan:
        stage.run(tmp_path)
    assert time.monotonic() - start < 20
    assert [s.result for stage in plan for s in stage.steps] == [
        'failed (3)',
        'stopped, the stage had 1 s',
        'not run',
        'passed',
    ]
    assert (tmp_path / 'fails.log').read_text() == 'why\n'
    assert (tmp_path / 'passes.log').read_text() == '7\n'
    (tmp_path / 'benchmark_vgg').mkdir()
    (tmp_path / 'benchmark_vgg' / 'benchmark.md').write_text('a table\n')
    text = check_cuda.report(plan, tmp_path)
    assert '| fails | failed (3) |' in text and text.endswith('a table\n')


def test_the_plan_takes_ten_minutes_at_most(tmp_path):
    plan = check_cuda.stages(tmp_path)
    assert sum(stage.limit for stage in plan) <= 600
    names = [s.name for stage in plan for s in stage.steps]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('name', check_cuda.KINDS)
def test_its_configs_train_ten_iterations(name):
    config = cuda_configs.ten_iterations(ROOT / 'configs' / f'{name}.py')
    assert isinstance(config, Config)
    assert 'Pretrained' not in str(config) and 'init_cfg=dict' not in str(config)
