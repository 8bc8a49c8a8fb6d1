import json

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from studies import iterations
from studies.iterations import STAGES, BatchMaker, Contender
from support.reference import iou
from support.reference import select_hard_rois as plain_select_hard_rois
from support.tools import run_tool, run_tool_here

from mmdet_ohem import select_hard_rois

RANDOM, OHEM = (f'configs/fast_rcnn_small_{name}bccd.py' for name in ('', 'ohem_'))


@pytest.fixture(scope='module')
def record(server, tmp_path_factory):
    """The benchmark of two small configs, as a user would run it."""
    out = tmp_path_factory.mktemp('benchmark')
    command = ['tools/benchmark.py', RANDOM, OHEM, '--rounds', 3, '--num-rois', 300]
    command += ['--device', 'cpu', '--out', out]
    done = run_tool(*command, python=server.python)
    assert done.returncode == 0, done.stderr
    assert (out / 'benchmark.md').read_text() in done.stdout
    return json.loads((out / 'benchmark.json').read_text())


def test_each_config_has_its_turns(record):
    random, ohem = record['iteration']
    for contender in (random, ohem):
        assert len(contender['seconds']) == 3 and contender['peak_bytes'] > 1e8
        for seconds, stages in zip(
            contender['seconds'], contender['stages'], strict=True
        ):
            assert list(stages) == list(STAGES)
            assert sum(stages.values()) == pytest.approx(seconds, rel=0.05)
    assert all(stages['read-only head'] == 0 for stages in random['stages'])
    assert all(stages['read-only head'] > 0 for stages in ohem['stages'])
    assert all(stages['NMS and top B'] > 0 for stages in ohem['stages'])


def test_the_score_maps_of_r_fcn_count_as_convolutions():
    init_default_scope('mmdet')
    model = Config.fromfile('configs/rfcn_small_ohem_bccd.py').model
    detector = MODELS.build(model)
    clock = iterations.StageClock('cpu')
    with clock.watching(detector):
        detector.roi_head.score_maps((torch.zeros(1, 64, 20, 20),), {})
    assert clock.seconds['conv forward'] > 0 == clock.seconds['training head']


def test_the_table_holds_medians_and_ratios():
    config = Config.fromfile(RANDOM)
    mmdet = Config.fromfile(RANDOM)
    mmdet.model.train_cfg.rcnn.sampler.type = 'mmdet.OHEMSampler'
    contenders = []
    for name, of, seconds, peak in (
        ('random', config, [1.0, 2.0, 4.0], 500e6),
        ('mmdet', mmdet, [2.0, 8.0, 8.0], 700e6),
        ('ours', config, [1.5, 2.0, 6.0], 600e6),
    ):
        stages = [dict.fromkeys(STAGES, 0.25)] * 3
        contenders.append(Contender(name, of, 'net', seconds, stages, int(peak)))
    rows = iterations.tabulate(contenders).splitlines()
    # Ratios are of the same round: 2, 4 and 2 times random; ours 1.5, 1 and 1.5.
    assert rows[2] == '| random | 2 (1 to 4) | 1.00 | 0.50 | 1 | 500 | +0 |'
    assert rows[3] == '| mmdet | 8 (2 to 8) | 2.00 | 1.00 | 1 | 700 | +200 |'
    assert rows[4] == '| ours | 2 (1.5 to 6) | 1.50 | 0.75 | 1 | 600 | +100 |'


def test_batches_have_the_rois_asked_for():
    config = Config.fromfile(RANDOM)
    first, second = (BatchMaker(num_rois=123)(config) for _ in range(2))
    assert len(first['inputs']) == config.train_dataloader.batch_size
    for image, sample, again in zip(
        first['inputs'], first['data_samples'], second['data_samples'], strict=True
    ):
        boxes = sample.proposals.bboxes
        assert boxes.shape == (123, 4) and len(sample.gt_instances) == 4
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
        assert (boxes[:, 2] < image.shape[2]).all()
        assert (boxes[:, 3] < image.shape[1]).all()
        # Ground truth is one of the proposals, in the same scale.
        for gt in sample.gt_instances.bboxes.tensor.numpy():
            overlaps = [iou(box, gt) for box in boxes.numpy().round(2)]
            assert max(overlaps) > 0.95
        assert (again.proposals.bboxes == boxes).all(), 'the same for every config'


@pytest.mark.parametrize('name', ['ms_voc07', 'ohem_voc0712', 'ohem_ms_coco_trainval'])
def test_several_scales_and_several_data_sets_make_a_batch(name):
    config = Config.fromfile(f'configs/fast_rcnn_vgg16_{name}.py')
    batch = BatchMaker(num_rois=20)(config)
    assert all(len(sample.proposals) == 20 for sample in batch['data_samples'])


def test_no_weights_are_fetched():
    model = get_config('mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py').model
    assert 'Pretrained' in str(model)
    assert 'Pretrained' not in str(iterations._without_weights(model))


def test_more_boxes_are_made_from_those_there_are():
    rng = np.random.default_rng(0)
    boxes = np.array([[10, 10, 60, 60], [100, 50, 180, 90]], np.float32)
    more = iterations._resample(boxes, 50, 200, 100, rng)
    assert more.shape == (50, 4) and (more[:2] == boxes).all()
    assert (np.abs(more[:, None] - boxes).max(axis=2).min(axis=1) <= 8).all()


def test_the_plain_loop_is_the_releases():
    rng = np.random.default_rng(0)
    boxes = iterations._resample(np.zeros((0, 4)), 200, 300, 200, rng)
    losses = rng.random(200).astype(np.float32)
    kept = iterations._plain_nms(losses, boxes, 0.7, limit=60)
    assert kept == plain_select_hard_rois(losses.tolist(), boxes, num=200)
    assert iterations._plain_nms(losses, boxes, 0.7, limit=0) is None


def test_selection_is_timed_against_it(monkeypatch):
    called = []

    def select(*args, **kwargs):
        called.append(args)
        return select_hard_rois(*args, **kwargs)

    monkeypatch.setattr(iterations, 'select_hard_rois', select)
    monkeypatch.setitem(iterations.WARM_UP, 'cpu', 3)
    (row,) = iterations.time_selection(sizes=(500,))
    assert len(called) == 3 + 5
    assert row.num_rois == 500 and row.seconds > 0 and row.plain > 0
    assert iterations.tabulate_selection([row]).splitlines()[2].startswith('| 500 |')


def test_the_plot_is_a_picture(tmp_path):
    contender = Contender('a', Config.fromfile(RANDOM), 'net', [1.0, 2.0], [], 10**9)
    iterations.plot_by_rois({500: [contender], 1000: [contender]}, tmp_path / 'a.png')
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['configs/nowhere.py'], 'There is no config configs/nowhere.py.'),
        ([RANDOM, '--rounds', 0], '--rounds and --num-rois must be 1 or more.'),
        (['configs/retinanet_r50_fpn_ohem_coco.py'], 'no model.roi_head'),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run_tool_here('tools/benchmark.py', *arguments, '--out', tmp_path)
