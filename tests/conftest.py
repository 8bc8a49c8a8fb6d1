import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mmdet_ohem.proposal_store import write_store

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items) -> None:
    """Files with slow tests come first, so that two workers end at the same time."""
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)


def heed_interrupts() -> None:
    """In a child: a shell that starts the tests in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_tool(*command, **variables) -> subprocess.Popen:
    """Start a tool of the repository as a user would, from its root."""
    command = [str(word) for word in command]
    if command[0].endswith('.py'):
        command.insert(0, sys.executable)
    # `python` in the shell scripts is the one that runs the tests.
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
        env=dict(os.environ, PATH=path, OMP_NUM_THREADS='1', **variables),
    )


def run_tool(*command, **variables) -> subprocess.CompletedProcess:
    """Run a tool to its end."""
    process = start_tool(*command, **variables)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def run_tool_here(tool: str, *arguments) -> None:
    """Run a tool in this process, which spares the imports; raises as it does."""
    words = [str(word) for word in (ROOT / tool, *arguments)]
    with mock.patch.object(sys, 'argv', words):
        runpy.run_path(words[0], run_name='__main__')


@pytest.fixture(scope='session')
def lookalikes(tmp_path_factory) -> Path:
    """The demo's data set, 6 + 4 images, with Selective Search proposals."""
    root = tmp_path_factory.mktemp('data') / 'lookalikes'
    made = run_tool('tools/make_lookalikes.py', root, '--num-train', 6, '--num-test', 4)
    assert made.returncode == 0, made.stderr
    proposed = run_tool(
        'tools/prepare_proposals.py',
        'selective-search',
        '--images',
        root / 'JPEGImages',
        '--out',
        root / 'proposals',
    )
    assert proposed.returncode == 0, proposed.stderr
    return root


def small_config(path: Path, lookalikes: Path, base: str, extra: str = '') -> Path:
    """A config that inherits `base` and trains 6 iterations on the small data set."""
    path.write_text(
        f"""
_base_ = {str(ROOT / 'configs' / base)!r}
train_pipeline = _base_.train_pipeline
train_pipeline[4].store = {str(lookalikes / 'proposals')!r}
test_pipeline = _base_.test_pipeline
test_pipeline[2].store = {str(lookalikes / 'proposals')!r}
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[2][0].store = {str(lookalikes / 'proposals')!r}
data = dict(data_root={str(lookalikes) + '/'!r})
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data, pipeline=train_pipeline)
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=6, val_interval=6)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=3))
{extra}
"""
    )
    return path


@pytest.fixture
def store(tmp_path) -> Path:
    """Three images, given in an order that is not that of their ids."""
    records = [
        ('000009', np.array([[5, 6, 50, 60], [1, 2, 30, 40]]), (80, 70)),
        ('000001', np.array([[0, 0, 99, 49]]), (100, 50)),
        ('zebra', np.zeros((0, 4)), (10, 20)),
    ]
    write_store(tmp_path / 'store', records, source='by hand')
    return tmp_path / 'store'
