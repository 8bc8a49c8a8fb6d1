import json
import math

import pytest
from conftest import ROOT
from mmengine.config import Config

from mmdet_ohem.compare import LABELS, SAMPLERS, Run, table

CONFIG = str(ROOT / 'configs' / 'fast_rcnn_small_ohem_lookalikes.py')


@pytest.mark.parametrize('base', [CONFIG, CONFIG.replace('_ohem', '')])
@pytest.mark.parametrize('sampler', SAMPLERS)
def test_the_config_of_a_run_changes_the_sampler_and_nothing_else(
    base, sampler, tmp_path
):
    prepared = Run(base, sampler, 7, tmp_path)
    prepared.prepare(cfg_options=[])
    run = Config.fromfile(prepared.config_file)
    original = Config.fromfile(base)
    rcnn = run.model.train_cfg.rcnn
    assert run.randomness.seed == 7
    assert rcnn.sampler.num == 64
    assert rcnn.sampler.type == SAMPLERS[sampler]['type']
    assert rcnn.assigner.neg_iou_thr == ((0.1, 0.5) if sampler == 'random' else 0.5)
    assert rcnn.sampler.get('nms_per_label', False) == (sampler == 'ohem-per-label')
    for config in (run, original):
        config.randomness.seed = None
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
        config.model.train_cfg.rcnn.sampler = None
        config.model.train_cfg.rcnn.assigner.neg_iou_thr = None
    assert run.to_dict() == original.to_dict()


def write_logs(folder, scores: dict) -> Run:
    log = folder / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    times = [9.0, 0.2, 0.1]
    lines = [dict(step=i, loss=3.0, time=time) for i, time in enumerate(times)]
    whole = ''.join(json.dumps(line) + '\n' for line in lines)
    log.write_text(whole + '{"step": 3, "lo')  # while it is being written
    for name, values in (('20260101_000000', {}), ('20260102_000000', scores)):
        test = folder / 'test' / name / f'{name}.json'
        test.parent.mkdir(parents=True)
        test.write_text(json.dumps(values))
    return Run(CONFIG, 'ohem', 1, folder)


def test_the_result_is_the_last_test_and_the_median_time(tmp_path):
    run = write_logs(tmp_path, {'pascal_voc/mAP': 0.5, 'time': 7.0})
    run.save_result()
    assert json.loads(run.result_file.read_text()) == dict(
        sampler='ohem', seed=1, mAP=0.5, seconds_per_iteration=0.2
    )


def test_a_run_too_short_to_log_a_time_still_has_a_result(tmp_path):
    run = write_logs(tmp_path, {'pascal_voc/mAP': 0.5})
    (tmp_path / '20260101_000000' / 'vis_data' / 'scalars.json').write_text('')
    run.save_result()
    result = json.loads(run.result_file.read_text())
    assert math.isnan(result['seconds_per_iteration'])
    assert '| 0.500 | 0.500 to 0.500 | nan |' in table([result])


def test_a_test_without_a_map_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match='ohem, seed 1 gave accuracy.*voc/mAP'):
        write_logs(tmp_path, dict(accuracy=1)).save_result()


def test_a_folder_of_other_settings_is_not_taken_for_ours(tmp_path):
    Run(CONFIG, 'ohem', 1, tmp_path).prepare(['optim_wrapper.optimizer.lr=0.01'])
    Run(CONFIG, 'ohem', 1, tmp_path).prepare(['optim_wrapper.optimizer.lr=0.01'])
    with pytest.raises(RuntimeError, match='other settings'):
        Run(CONFIG, 'ohem', 1, tmp_path).prepare(['optim_wrapper.optimizer.lr=0.02'])
    with pytest.raises(RuntimeError, match='other settings'):
        Run(CONFIG, 'random', 1, tmp_path).prepare(['optim_wrapper.optimizer.lr=0.01'])
    assert 'OHEMSampler' in (tmp_path / 'run.py').read_text()


def test_a_cascade_is_refused(tmp_path):
    path = tmp_path / 'cascade.py'
    path.write_text('model = dict(train_cfg=dict(rcnn=[dict(), dict()]))')
    with pytest.raises(RuntimeError, match='no model.train_cfg.rcnn.sampler'):
        Run(str(path), 'ohem', 1, tmp_path / 'run').prepare([])


def test_the_table_worked_out_by_hand():
    results = [
        dict(sampler='random', seed=0, mAP=0.5, seconds_per_iteration=0.10),
        dict(sampler='ohem', seed=0, mAP=0.75, seconds_per_iteration=0.2),
        dict(sampler='random', seed=1, mAP=0.6, seconds_per_iteration=0.30),
    ]
    assert table(results).splitlines()[2:] == [
        f'| {LABELS["random"]} | 2 | 0.550 | 0.500 to 0.600 | 0.20 |',
        f'| {LABELS["ohem"]} | 1 | 0.750 | 0.750 to 0.750 | 0.20 |',
    ]
