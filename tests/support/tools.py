"""Running the repository's tools, and a small config for them."""

import ast
import functools
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch
from mmdet.registry import MODELS
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.config import config as config_module
from mmengine.config import utils as config_utils
from mmengine.hub import hub
from mmengine.registry import init_default_scope
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

ROOT = Path(__file__).parents[2]
READ_LISTS = functools.cache(config_utils._get_cfg_metainfo)


def heed_interrupts() -> None:
    """In a child: a shell that starts the tests in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def spare_configs_their_time() -> None:
    """Leave configs that a Runner writes in long lines: their layout is most of the
    time of a short run. And read MMDetection's lists of configs once: MMEngine does so
    for every `mmdet::` in a config, a second each time."""

    def checked(text: str, **_) -> tuple[str, bool]:
        ast.parse(text)
        return text, True

    config_module.FormatCode = checked
    for module in (config_utils, hub):
        module._get_cfg_metainfo = READ_LISTS


def start_tool(
    *command, python: Path = Path(sys.executable), cwd: Path = ROOT, **variables
) -> subprocess.Popen:
    """Start a tool of the repository as a user would, from its root or a clone's.

    Args:
        python: which the shell scripts find by its name, too; a `ToolServer` has one
            that needs no imports.
    """
    command = [str(word) for word in command]
    if command[0].endswith('.py'):
        command.insert(0, str(python))
    path = f'{python.parent}{os.pathsep}{os.environ["PATH"]}'
    return subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
        env=dict(os.environ, PATH=path, OMP_NUM_THREADS='1', **variables),
    )


def run_tool(*command, **options) -> subprocess.CompletedProcess:
    """Run a tool to its end; the options are those of `start_tool`."""
    process = start_tool(*command, **options)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def run_tool_here(tool: str, *arguments) -> None:
    """Run a tool in this process, which spares the imports; raises as it does."""
    # By its name MMEngine would find the visualizer of the run before, and log there.
    DetLocalVisualizer._instance_dict.clear()
    words = [str(word) for word in (ROOT / tool, *arguments)]
    try:
        with mock.patch.object(sys, 'argv', words):
            runpy.run_path(words[0], run_name='__main__')
    finally:
        end_workers()


def end_workers() -> None:
    """End the workers of all data loaders. The garbage collector closes the queues of
    a loader before the loader can ask its workers to end, and it then waits for 5 s
    for each of them."""
    if multiprocessing.active_children():
        for thing in gc.get_objects():
            if type(thing) is _MultiProcessingDataLoaderIter:
                thing._shutdown_workers()


def save_untrained(config: Config, path: Path) -> Path:
    """A checkpoint as a training writes it, of random weights."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(config.model)
    # Sure of something, so that there are boxes to draw.
    torch.nn.init.normal_(detector.roi_head.bbox_head.fc_cls.weight, std=2)
    torch.save(dict(state_dict=detector.state_dict(), meta={}), path)
    return path


def small_config(path: Path, lookalikes: Path, base: str, extra: str = '') -> Path:
    """A config that inherits `base` and trains 6 iterations on the small data set."""
    path.write_text(
        f"""
_base_ = {str(ROOT / 'configs' / base)!r}

from mmdet_ohem.datasets import with_step

read = 'LoadStoredProposals'
store = {str(lookalikes / 'proposals')!r}
here = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(with_step(_base_.train_dataloader, read, store=store), **here)
train_dataloader['dataset']['data_root'] = {str(lookalikes) + '/'!r}
test_dataloader = dict(with_step(_base_.test_dataloader, read, store=store), **here)
test_dataloader['dataset']['data_root'] = {str(lookalikes) + '/'!r}
val_dataloader = test_dataloader
tta_pipeline = with_step(_base_.tta_pipeline, read, store=store)
train_cfg = dict(max_iters=6, val_interval=6)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=3))
{extra}
"""
    )
    return path


def small_rpn_config(path: Path, lookalikes: Path, extra: str = '') -> Path:
    """A Faster R-CNN that trains 6 iterations on the small data set, at a third of its
    size; it needs no stored proposals."""
    bases = [
        str(ROOT / 'configs' / '_base_' / f'{name}.py')
        for name in (
            'models/fast_rcnn_small',
            'schedules/small_1200',
            'default_runtime',
        )
    ]
    path.write_text(
        f"""
_base_ = {bases!r}

from mmdet_ohem.datasets import loaders, voc_layout

root, classes = {str(lookalikes) + '/'!r}, ('washer', 'nut', 'gear')
globals().update(
    loaders(
        train=voc_layout(root, 'train', None, classes),
        test=voc_layout(root, 'test', None, classes),
        scale=(136, 104),
        metric=dict(type='VOCMetric', metric='mAP', eval_mode='area'),
    )
)
here = dict(num_workers=0, persistent_workers=False)
for name in ('train', 'val', 'test'):
    globals()[f'{{name}}_dataloader'].update(here)
proposals = dict(
    nms_pre=100,
    max_per_img=50,
    nms=dict(type='nms', iou_threshold=0.7),
    min_bbox_size=0,
)
model = dict(
    type='FasterRCNN',
    rpn_head=dict(
        type='RPNHead',
        in_channels=64,
        feat_channels=16,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[2, 4], ratios=[1.0], strides=[8]
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3
            ),
            sampler=dict(
                type='RandomSampler',
                num=64,
                pos_fraction=0.5,
                add_gt_as_proposals=False,
            ),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=proposals,
    ),
    test_cfg=dict(rpn=proposals),
)
train_cfg = dict(max_iters=6, val_interval=6)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=3))
{extra}
"""
    )
    return path
