"""Running a comparison: with tools that only pretend to train, and once in earnest
(tests/test_tools.py)."""

import json
import re
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, run_tool_here
from mmengine.config import Config

from mmdet_ohem import compare as compare_module
from mmdet_ohem.compare import Run, compare
from mmdet_ohem.compare_configs import make_run

CONFIG = ROOT / 'configs' / 'fast_rcnn_small_ohem_lookalikes.py'
# Logs one line, whose loss tells the sampler, and leaves a checkpoint.
TRAIN = """
import argparse, json, os, sys, time
from pathlib import Path
from mmengine.config import Config
parser = argparse.ArgumentParser()
parser.add_argument('config')
parser.add_argument('--resume', action='store_true')
parser.add_argument('--work-dir', type=Path)
args = parser.parse_args()
sampler = Config.fromfile(args.config).model.train_cfg.rcnn.sampler
if sampler.type == 'mmdet.OHEMSampler':
    sys.exit('this sampler cannot be had')
log = args.work_dir / f'2026010{1 + len(os.listdir(args.work_dir))}' / 'vis_data'
log.mkdir(parents=True)
line = dict(step=20, loss=1.0, time=0.25)
line['mining/loss_all_rois'] = 0.5 if 'ohem' in sampler.type else 0.75
line['gpu'] = int(os.environ.get('CUDA_VISIBLE_DEVICES', -1))
(log / 'scalars.json').write_text(json.dumps(line) + chr(10))
(args.work_dir / 'last_checkpoint').write_text('iter_20.pth')
time.sleep(SECONDS)
"""
TEST = """
import sys
from pathlib import Path
config, checkpoint, _, folder = sys.argv[1:]
assert checkpoint == 'iter_20.pth'
folder = Path(folder, '20260101')
folder.mkdir(parents=True, exist_ok=True)
(folder / '20260101.json').write_text('{"pascal_voc/mAP": 0.5, "time": 7.0}')
"""


@pytest.fixture
def tools(tmp_path):
    """A folder with the two tools; training takes no time."""
    return write_tools(tmp_path / 'tools', seconds=0)


def write_tools(folder, seconds: float):
    folder.mkdir()
    (folder / 'train.py').write_text(TRAIN.replace('SECONDS', str(seconds)))
    (folder / 'test.py').write_text(TEST)
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
        )
        for seed in (0, 1)
        for sampler, loss in (('random', 0.75), ('ohem', 0.5))
    ]
    names = {'table.md', 'results.json', 'curves.png'}
    assert names < {path.name for path in (tmp_path / 'out').iterdir()}


def test_a_failing_sampler_does_not_stop_the_others(tools, tmp_path, capfd):
    arguments = (['mmdet-ohem', 'ohem'], [0], tmp_path / 'out', tools)
    with pytest.raises(RuntimeError, match='mmdet-ohem, seed 0 failed; see .*train'):
        compare(Config.fromfile(CONFIG), *arguments)
    assert 'ohem, seed 0 is done.' in capfd.readouterr().out
    log = (tmp_path / 'out' / 'mmdet-ohem-seed0' / 'train.log').read_text()
    assert log == 'this sampler cannot be had\n'
    # What is finished is not run again.
    (tools / 'train.py').write_text(TRAIN.replace('SECONDS', '0').replace('mmdet.', ''))
    compare(Config.fromfile(CONFIG), *arguments)
    out = capfd.readouterr().out
    assert out.splitlines() == [
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
    places = compare_module._places(jobs=3)
    assert [place['CUDA_VISIBLE_DEVICES'] for place in places] == ['0', '1', '0']


def test_cpu_cores_are_shared_by_the_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr('os.cpu_count', lambda: 8)
    assert [len(compare_module._places(jobs)) for jobs in (None, 1, 3)] == [1, 1, 3]
    assert compare_module._places(3)[0]['OMP_NUM_THREADS'] == '2'


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl is of Linux')
def test_a_killed_comparison_leaves_no_training_behind(tmp_path):
    tools = write_tools(tmp_path / 'tools', seconds=600)
    script = (
        'from mmengine.config import Config\n'
        'from mmdet_ohem.compare import compare\n'
        'from pathlib import Path\n'
        f'compare(Config.fromfile({str(CONFIG)!r}), ["ohem"], [0],'
        f' {str(tmp_path / "out")!r}, Path({str(tools)!r}))'
    )
    process = subprocess.Popen([sys.executable, '-c', script])
    checkpoint = tmp_path / 'out' / 'ohem-seed0' / 'last_checkpoint'
    wait_for(lambda: checkpoint.exists() or process.poll() is not None)
    trainings = ['pgrep', '-f', str(tools / 'train.py')]
    assert subprocess.run(trainings, capture_output=True).stdout
    process.kill()
    process.wait()
    wait_for(lambda: not subprocess.run(trainings, capture_output=True).stdout)


def wait_for(condition, seconds: float = 60) -> None:
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
    run.save_result()
    assert json.loads(run.result_file.read_text()) == dict(
        sampler='ohem',
        seed=1,
        metric='coco/bbox_mAP',
        mAP=0.5,
        loss_all_rois=1.0,
        seconds_per_iteration=0.2,
        memory_mb=300,
    )


def test_focal_loss_is_not_held_against_the_others(tmp_path):
    line = {'step': 1, 'loss': 1, 'time': 1, 'mining/loss_all_rois': 0.1}
    write_logs(tmp_path, {'pascal_voc/mAP': 0.5}, [line])
    run = a_run(tmp_path, 'focal')
    run.save_result()
    assert json.loads(run.result_file.read_text())['loss_all_rois'] is None


def test_a_test_without_a_map_does_not_cost_the_training(tools, tmp_path, capfd):
    good = (tools / 'test.py').read_text()
    (tools / 'test.py').write_text(good.replace('pascal_voc/mAP', 'accuracy'))
    config = Config.fromfile(CONFIG)
    arguments = (['ohem'], [0], tmp_path / 'out', tools)
    with pytest.raises(RuntimeError, match='ohem, seed 0 gave accuracy, time, but no'):
        compare(config, *arguments, budget=20)
    (tools / 'test.py').write_text(good)
    config.test_evaluator.eval_mode = '11points'  # the user heeds the advice
    capfd.readouterr()
    (result,) = compare(config, *arguments, budget=20)
    assert result['mAP'] == 0.5
    assert 'train' not in capfd.readouterr().out
    with pytest.raises(RuntimeError, match='ohem-seed0.py is of another comparison'):
        config.test_evaluator.eval_mode = 'area'
        compare(config, *arguments, budget=20)


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
        ([CONFIG, '--budget', -5], '--budget must be 1 or more, not -5'),
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
