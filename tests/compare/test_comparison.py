"""Running a comparison: with tools that only pretend to train, and once in earnest
(tests/test_tools.py)."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from mmengine.config import Config
from support.tools import ROOT, run_tool_here
from tqdm import tqdm

from mmdet_ohem.compare import compare
from mmdet_ohem.compare.config_changes import make_run
from mmdet_ohem.compare.processes import places
from mmdet_ohem.compare.run import Run

CONFIG = ROOT / 'configs' / 'fast_rcnn_small_ohem_lookalikes.py'
# Logs one line, whose loss tells the sampler, and leaves a checkpoint.
TRAIN = """
import argparse, json, os, runpy, shutil, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument('config')
parser.add_argument('--resume', action='store_true')
parser.add_argument('--work-dir', type=Path)
args = parser.parse_args()
model = runpy.run_path(args.config)['model']  # MMEngine would take longer to import
sampler = model['train_cfg']['rcnn']['sampler']['type']
if sampler == 'mmdet.OHEMSampler':
    sys.exit('this sampler cannot be had')
log = args.work_dir / f'2026010{1 + len(os.listdir(args.work_dir))}' / 'vis_data'
log.mkdir(parents=True)
line = dict(step=20, loss=1.0, time=0.25)
line['mining/loss_all_rois'] = 0.5 if 'ohem' in sampler else 0.75
line['gpu'] = int(os.environ.get('CUDA_VISIBLE_DEVICES') or -1)
(log / 'scalars.json').write_text(json.dumps(line) + chr(10))
checkpoint = args.work_dir / 'iter_20.pth'
shutil.copy(Path(__file__).with_name('iter_20.pth'), checkpoint)
(args.work_dir / 'last_checkpoint').write_text(str(checkpoint))
time.sleep(SECONDS)
"""
TEST = """
import json, sys
from pathlib import Path
config, checkpoint, _, folder = sys.argv[1:]
assert Path(checkpoint).name == 'iter_20.pth'
folder = Path(folder, '20260101')
folder.mkdir(parents=True, exist_ok=True)
scores = {"pascal_voc/mAP": 0.5, "time": 7.0}
if 'background_dataloader' in Path(config).read_text():
    scores |= {"background/fp_per_image@recall0.8": 0.25}
    scores |= {"background/mean_sensitivity": 0.5, "background/false_alarms@0.5": 0.125}
(folder / '20260101.json').write_text(json.dumps(scores))
"""


@pytest.fixture
def tools(tmp_path):
    """A folder with the two tools; training takes no time."""
    return write_tools(tmp_path / 'tools', seconds=0)


def write_tools(folder, seconds: float):
    folder.mkdir()
    (folder / 'train.py').write_text(TRAIN.replace('SECONDS', str(seconds)))
    (folder / 'test.py').write_text(TEST)
    torch.save(dict(meta={}, message_hub={}, state_dict={}), folder / 'iter_20.pth')
    return folder


def test_a_result_for_each_run_and_the_reports(tmp_path):
    tools = write_tools(tmp_path / 'tools', seconds=1)  # to see its memory
    config = Config.fromfile(CONFIG)
    results = compare(config, ['random', 'ohem'], [0, 1], tmp_path / 'out', tools)
    for result in results:
        assert result.pop('memory_mb') > 10  # of Python alone
    assert results == [
        dict(
            sampler=sampler,
            seed=seed,
            metric='pascal_voc/mAP',
            mAP=0.5,
            loss_all_rois=loss,
            seconds_per_iteration=0.25,
            runs_at_a_time=1,
        )
        for seed in (0, 1)
        for sampler, loss in (('random', 0.75), ('ohem', 0.5))
    ]
    names = {'table.md', 'results.json', 'curves.png'}
    assert names < {path.name for path in (tmp_path / 'out').iterdir()}


def test_times_tell_how_many_runs_went_at_a_time(tools, tmp_path):
    config = Config.fromfile(CONFIG)
    compare(config, ['ohem'], [0, 1], tmp_path / 'out', tools, jobs=2)
    # Those that are finished keep their number.
    compare(config, ['ohem'], [0, 1, 2], tmp_path / 'out', tools, jobs=2)
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert [result['runs_at_a_time'] for result in results] == [2, 2, 1]
    assert '| 0.25 (1 to 2) |' in (tmp_path / 'out' / 'table.md').read_text()


def test_a_failing_sampler_does_not_stop_the_others(tools, tmp_path):
    said = []
    arguments = (['mmdet-ohem', 'ohem'], [0], tmp_path / 'out', tools)
    with pytest.raises(RuntimeError, match='mmdet-ohem, seed 0 failed; see .*train'):
        compare(Config.fromfile(CONFIG), *arguments, say=said.append)
    assert 'ohem, seed 0 is done.' in said
    log = (tmp_path / 'out' / 'mmdet-ohem-seed0' / 'train.log').read_text()
    assert log == 'this sampler cannot be had\n'
    # What is finished is not run again.
    (tools / 'train.py').write_text(TRAIN.replace('SECONDS', '0').replace('mmdet.', ''))
    said.clear()
    compare(Config.fromfile(CONFIG), *arguments, say=said.append)
    assert said == [
        'mmdet-ohem, seed 0: train',
        'mmdet-ohem, seed 0: test',
        'mmdet-ohem, seed 0 is done.',
    ]


def test_runs_go_over_the_gpus(tools, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    compare(Config.fromfile(CONFIG), ['ohem'], [0, 1], tmp_path, tools)
    logs = tmp_path.glob('ohem-seed*/*/vis_data/scalars.json')
    assert {json.loads(log.read_text())['gpu'] for log in logs} == {3, 5}
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    three = places(jobs=3)
    assert [place['CUDA_VISIBLE_DEVICES'] for place in three] == ['0', '1', '0']


def test_runs_go_over_all_slices_of_a_gpu(tmp_path, monkeypatch):
    """CUDA counts one device, whatever the number of MIG slices."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)

    def named(jobs=None):
        return [place['CUDA_VISIBLE_DEVICES'] for place in places(jobs)]

    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', 'MIG-aa,MIG-bb,MIG-cc')
    assert named() == ['MIG-aa', 'MIG-bb', 'MIG-cc']
    assert named(jobs=2) == ['MIG-aa', 'MIG-bb']

    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    lists = tmp_path / 'nvidia-smi'
    # As NVIDIA's MIG user guide prints it.
    gpu = 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5d5b)'
    for lines, expected in (
        ([gpu], ['0']),
        (
            [
                gpu,
                '  MIG 3g.40gb     Device  0: (UUID: MIG-1b2c)',
                '  MIG 3g.40gb     Device  1: (UUID: MIG-3d4e)',
            ],
            ['MIG-1b2c', 'MIG-3d4e'],
        ),
    ):
        lists.write_text('#!/bin/sh\ncat <<EOF\n' + '\n'.join(lines) + '\nEOF\n')
        lists.chmod(0o755)
        assert named() == expected
    monkeypatch.setenv('PATH', '')
    assert named() == ['0'], 'without nvidia-smi'


def test_cpu_cores_are_shared_by_the_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr('os.cpu_count', lambda: 8)
    assert [len(places(jobs)) for jobs in (None, 1, 3)] == [1, 1, 3]
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert places(3)[0]['OMP_NUM_THREADS'] == '2'
    monkeypatch.setenv('OMP_NUM_THREADS', '1')  # the user's own word counts
    assert places(3)[0]['OMP_NUM_THREADS'] == '1'


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl is of Linux')
def test_a_killed_comparison_leaves_no_training_behind(server, tmp_path):
    tools = write_tools(tmp_path / 'tools', seconds=600)
    (tmp_path / 'compare.py').write_text(
        'import sys\n'
        'from mmengine.config import Config\n'
        'from mmdet_ohem.compare import compare\n'
        'from pathlib import Path\n'
        f'sys.executable = {sys.executable!r}  # a training that nobody watches\n'
        f'compare(Config.fromfile({str(CONFIG)!r}), ["ohem"], [0],'
        f' {str(tmp_path / "out")!r}, Path({str(tools)!r}))'
    )
    pid = server.start(tmp_path / 'compare.py')
    checkpoint = tmp_path / 'out' / 'ohem-seed0' / 'last_checkpoint'
    wait_for(lambda: checkpoint.exists() or server.wait(pid, 0) is not None)
    trainings = ['pgrep', '-f', str(tools / 'train.py')]
    assert subprocess.run(trainings, capture_output=True).stdout
    os.kill(pid, signal.SIGKILL)
    assert server.wait(pid) == -signal.SIGKILL
    wait_for(lambda: not subprocess.run(trainings, capture_output=True).stdout)


def wait_for(condition, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def a_run(folder, sampler: str = 'ohem', **changes) -> Run:
    config = Config.fromfile(CONFIG)
    config.merge_from_dict(changes)
    return Run(sampler, 1, make_run(config, sampler, 1, budget=None), folder)


def write_logs(folder, scores: dict, lines: list[dict]) -> None:
    log = folder / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    whole = ''.join(json.dumps(line) + '\n' for line in lines)
    log.write_text(whole + '{"step": 3, "lo')  # while it is being written
    for name, values in (('20260101_000000', {}), ('20260102_000000', scores)):
        test = folder / 'test' / name / f'{name}.json'
        test.parent.mkdir(parents=True)
        test.write_text(json.dumps(values))


@pytest.mark.parametrize('prefix', ['mining/', 'mining/s0.'])
def test_the_result_worked_out_by_hand(prefix, tmp_path):
    losses = {25: 9.0, 50: 8.0, 75: 7.0, 80: 0.5, 100: 1.5}  # the last quarter: 76 to
    times = [9.0, 0.2, 0.1, 0.3, 0.2]
    memory = [100, 300, 200, 200, 200]
    lines = [
        {'step': s, 'loss': 3.0, 'time': t, 'memory': m, f'{prefix}loss_all_rois': loss}
        for (s, loss), t, m in zip(losses.items(), times, memory, strict=True)
    ]
    write_logs(tmp_path, {'coco/bbox_mAP_50': 0.9, 'coco/bbox_mAP': 0.5}, lines)
    run = a_run(tmp_path)
    for num in (1, 3, 2):  # cut off twice
        run.logs.save_highest(runs_at_a_time=num)
    run.save_result()
    assert json.loads(run.logs.result_file.read_text()) == dict(
        sampler='ohem',
        seed=1,
        metric='coco/bbox_mAP',
        mAP=0.5,
        loss_all_rois=1.0,
        seconds_per_iteration=0.2,
        runs_at_a_time=3,
        memory_mb=300,
    )


# The keys of CocoMetric, LVISMetric, VOCMetric with several iou_thrs and MMRotate's
# DOTAMetric; and of VOCMetric with its one threshold.
@pytest.mark.parametrize(
    ('metric', 'start', 'expected'),
    [
        ('coco/bbox_mAP', 'coco/bbox_mAP_', {'AP50': 0.9, 'AP75': 0.4}),
        ('lvis/bbox_AP', 'lvis/bbox_AP', {'AP50': 0.9, 'AP75': 0.4}),
        ('pascal_voc/mAP', 'pascal_voc/AP', {'AP50': 0.9, 'AP75': 0.4}),
        ('dota/mAP', 'dota/AP', {'AP50': 0.9, 'AP75': 0.4}),
        ('pascal_voc/mAP', 'pascal_voc/AP', {}),
    ],
)
def test_ap50_and_ap75_of_a_mean_over_ious(metric, start, expected, tmp_path):
    scores = {metric: 0.5, f'{start}50': 0.9}
    if expected:
        scores[f'{start}75'] = 0.4
    write_logs(tmp_path, scores, [{'step': 1, 'loss': 1, 'time': 1}])
    run = a_run(tmp_path)
    run.logs.save_highest(runs_at_a_time=1)
    run.save_result()
    result = json.loads(run.logs.result_file.read_text())
    assert {key: result[key] for key in ('AP50', 'AP75') if key in result} == expected


@pytest.mark.parametrize('sampler', ['focal', 'libra', 'pisa'])
def test_another_loss_is_not_held_against_the_others(tmp_path, sampler):
    line = {'step': 1, 'loss': 1, 'time': 1, 'mining/loss_all_rois': 0.1}
    write_logs(tmp_path, {'pascal_voc/mAP': 0.5}, [line])
    run = a_run(tmp_path, sampler)
    run.logs.save_highest(runs_at_a_time=1)
    run.save_result()
    assert json.loads(run.logs.result_file.read_text())['loss_all_rois'] is None


def test_a_test_without_a_map_does_not_cost_the_training(tools, tmp_path):
    good = (tools / 'test.py').read_text()
    (tools / 'test.py').write_text(good.replace('pascal_voc/mAP', 'accuracy'))
    config = Config.fromfile(CONFIG)
    arguments = (['ohem'], [0], tmp_path / 'out', tools)
    with pytest.raises(RuntimeError, match='ohem, seed 0 gave accuracy, time, but no'):
        compare(config, *arguments, budget=20)
    (tools / 'test.py').write_text(good)
    config.test_evaluator.eval_mode = '11points'  # the user heeds the advice
    said = []
    (result,) = compare(config, *arguments, budget=20, say=said.append)
    assert result['mAP'] == 0.5
    assert 'train' not in ' '.join(said)
    with pytest.raises(RuntimeError, match='ohem-seed0.py is of another comparison'):
        config.test_evaluator.eval_mode = 'area'
        compare(config, *arguments, budget=20)


def test_a_finished_comparison_is_tested_again_with_background(tools, tmp_path):
    config = Config.fromfile(CONFIG)
    arguments = (['random', 'ohem'], [0], tmp_path / 'out', tools, 20)
    compare(config, *arguments)
    config.background_dataloader = dict(dataset=dict(img_path='empty'))
    for steps in (['test', 'test'], []):
        said = []
        results = compare(config, *arguments, say=said.append)
        assert [line.split(': ')[1] for line in said if ': ' in line] == steps
    for result in results:
        assert result['background/fp_per_image@recall0.8'] == 0.25
        assert 'background/mean_sensitivity' not in result
    text = (tmp_path / 'out' / 'table.md').read_text()
    for words in ('false positives per empty image at recall 0.8 |', '| 0.250 | 0.125'):
        assert words in text


def test_a_folder_of_another_config_is_not_taken_for_ours(tmp_path):
    lr = 'optim_wrapper.optimizer.lr'
    folder = tmp_path / 'run'
    a_run(folder, **{lr: 0.01}).prepare()
    a_run(folder, **{lr: 0.01}).prepare()
    with pytest.raises(RuntimeError, match='run.py is of another comparison'):
        a_run(folder, **{lr: 0.02}).prepare()
    with pytest.raises(RuntimeError, match='run.py is of another comparison'):
        a_run(folder, 'random', **{lr: 0.01}).prepare()
    assert 'mmdet_ohem.OHEMSampler' in (tmp_path / 'run.py').read_text()


@pytest.mark.parametrize(
    'arguments, words',
    [
        ([CONFIG, '--samplers', 'best'], "choice: 'best' .*'ohem-per-label', 'iou-bal"),
        (['configs/nothing.py'], 'There is no config configs/nothing.py'),
        (['configs/rpn_vgg16_voc07.py'], 'model has no roi_head'),
        ([CONFIG, '--budget', -5], '--budget: it must be a whole number from 1 on'),
        (
            [CONFIG, '--cfg-options', 'test_dataloader.dataset.data_root=nowhere'],
            'is missing. Make it with',
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_tool_here('tools/compare_samplers.py', *arguments, '--work-dir', tmp_path)
    said = capsys.readouterr().err if stop.value.code == 2 else str(stop.value)
    assert re.search(words, said.splitlines()[-1]), said


def test_a_damaged_checkpoint_is_not_the_end_of_a_training(tmp_path):
    run = a_run(tmp_path)
    assert not run.is_trained and run.checkpoint is None
    for number in (run.length - 120, run.length):
        last = tmp_path / f'iter_{number}.pth'
        torch.save(dict(meta={}, message_hub={}, state_dict={}), last)
        (tmp_path / 'last_checkpoint').write_text(str(last))
    assert run.is_trained
    last.write_bytes(last.read_bytes()[:100])
    assert not run.is_trained
    assert run.checkpoint == str(tmp_path / f'iter_{run.length - 120}.pth')


def test_the_help_names_the_folder(capsys):
    with pytest.raises(SystemExit):
        run_tool_here('tools/compare_samplers.py', '--help')
    said = ' '.join(capsys.readouterr().out.split())
    assert 'work_dirs/compare/<name of the config> if left out' in said


def test_a_terminal_shows_a_bar_for_each_training(tmp_path, monkeypatch):
    monkeypatch.setattr('mmdet_ohem.compare.processes.BAR_SECONDS', 0)
    tools = write_tools(tmp_path / 'tools', seconds=2)
    said, bars = [], []

    class Bar(tqdm):
        def __init__(self, **arguments):
            super().__init__(file=io.StringIO(), **arguments)
            bars.append(self)

    config = Config.fromfile(CONFIG)
    arguments = (['random', 'ohem'], [0], tmp_path / 'out', tools, 40)
    compare(config, *arguments, jobs=2, say=said.append, bar=Bar)
    assert {bar.desc for bar in bars} == {'random, seed 0', 'ohem, seed 0'}
    for bar in bars:
        assert bar.total == 40 and bar.n == 20 and bar.disable  # closed
    assert not any('iteration' in line for line in said)
