"""The hooks in trainings of six iterations, and on images scored by hand."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import HOOKS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from support.reference import iou, select_hard_rois
from support.roi_heads import (
    EXTRACTOR,
    NUM_CLASSES,
    build_from,
    head_config,
    make_image,
    mine,
    plain_losses,
    stage_config,
)
from support.tools import small_config

from mmdet_ohem.visualization.pictures import BACKGROUND, FOREGROUND, GROUND_TRUTH

CONFIGS = dict(
    ohem='fast_rcnn_small_ohem_lookalikes.py', random='fast_rcnn_small_lookalikes.py'
)
OF_EVERY_SAMPLER = {
    'mining/loss_all_rois',
    'mining/loss_sampled_rois',
    'mining/foreground_fraction',
    'mining/only_background_fraction',
}
OF_OHEM = OF_EVERY_SAMPLER | {'mining/dropped_by_nms', 'mining/loss_at_cut'}
HOOKS_OF_THE_TEST = """
custom_hooks = [
    _base_.custom_hooks[0],
    dict(type='mmdet_ohem.MiningHook', interval=2),
    dict(type='mmdet_ohem.MinedPicturesHook', interval=3),
]
"""


def train(folder, lookalikes, sampler: str, extra: str = ''):
    """Train in this process; returns the work dir."""
    folder.mkdir()
    config = small_config(folder / 'config.py', lookalikes, CONFIGS[sampler], extra)
    cfg = Config.fromfile(config)
    cfg.work_dir = str(folder / 'work')
    # In one process, runs share the message hub and the visualizer of their name.
    cfg.experiment_name = cfg.visualizer.name = f'{folder.parent.name}_{folder.name}'
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    Runner.from_cfg(cfg).train()
    return folder / 'work'


def log_of(work_dir) -> list[dict]:
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(scope='module', params=['ohem', 'random'])
def runs(request, lookalikes, tmp_path_factory):
    """A sampler, and work dirs of a run without and with the hooks."""
    folder = tmp_path_factory.mktemp(f'hooks_{request.param}')
    plain = train(folder / 'plain', lookalikes, request.param)
    watched = train(folder / 'watched', lookalikes, request.param, HOOKS_OF_THE_TEST)
    return request.param, plain, watched


def test_a_resumed_training_logs_what_the_unbroken_one_does(runs, lookalikes, tmp_path):
    sampler, _, unbroken = runs
    checkpoint = str(unbroken / 'iter_3.pth')
    extra = f'{HOOKS_OF_THE_TEST}resume = True\nload_from = {checkpoint!r}'
    resumed = train(tmp_path / f'resumed_{sampler}', lookalikes, sampler, extra)
    logs = [
        {
            (line['step'], name): value
            for line in log_of(run)
            for name, value in line.items()
            if name.startswith('mining/') and line['step'] > 3
        }
        for run in (unbroken, resumed)
    ]
    assert logs[0] == logs[1]
    assert {step for step, _ in logs[0]} >= {4, 6}


def test_training_is_bit_for_bit_the_same(runs):
    _, plain, watched = runs
    for name in ('loss', 'grad_norm'):
        values = [[line[name] for line in log_of(run)] for run in (plain, watched)]
        assert values[0] == values[1] and len(values[0]) == 6
    weights = [
        torch.load(run / 'iter_6.pth', weights_only=True)['state_dict']
        for run in (plain, watched)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name]), name


def test_json_and_text_log_have_every_scalar(runs):
    sampler, _, watched = runs
    expected = OF_OHEM if sampler == 'ohem' else OF_EVERY_SAMPLER
    lines = log_of(watched)
    assert not any('mining' in key for key in lines[0])  # the first update is due at 2
    for line in lines[1:]:
        assert {key for key in line if 'mining' in key} == expected
    if sampler == 'ohem':
        # The mined are harder than all, and than the last of them.
        for line in lines[1:]:
            hardest = line['mining/loss_sampled_rois']
            assert 0 < line['mining/loss_all_rois'] < hardest
            assert 0 < line['mining/loss_at_cut'] < hardest
        # The small network has no dropout: what ranks is what is trained on. The loss
        # in the log is the mean so far; iterations 2, 4 and 6 were read.
        sums = [i * line['loss'] for i, line in enumerate(lines, start=1)]
        losses = np.diff(sums, prepend=0)
        assert lines[-1]['mining/loss_sampled_rois'] == pytest.approx(
            losses[1::2].mean(), rel=1e-3
        )
    (text,) = watched.glob('*/*.log')
    for key in expected:
        assert f'{key}: {lines[-1][key]:.4f}' in text.read_text()


def test_pictures_go_through_the_visualizer(runs):
    sampler, _, watched = runs
    pictures = sorted(watched.glob('*/vis_data/vis_image/*.png'))
    assert [picture.name for picture in pictures] == ['mined_3.png', 'mined_6.png']
    picture = cv2.imread(str(pictures[0]))[..., ::-1].astype(int)
    assert picture.shape == (600, 800, 3)
    for colour in (GROUND_TRUTH, FOREGROUND, BACKGROUND):
        assert (np.abs(picture - colour).max(axis=2) < 40).sum() > 100, colour


def test_tensorboard_has_every_scalar_and_the_pictures(lookalikes, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backends = "vis_backends = [dict(type='LocalVisBackend'),\n"
    backends += "    dict(type='TensorboardVisBackend')]\n"
    backends += 'visualizer = dict(vis_backends=vis_backends)\n'
    work_dir = train(tmp_path / 'run', lookalikes, 'ohem', HOOKS_OF_THE_TEST + backends)
    (events,) = work_dir.glob('*/vis_data/events.out.tfevents*')
    accumulator = EventAccumulator(str(events)).Reload()
    assert accumulator.Tags()['images'] == ['mined']
    by_step = {line['step']: line for line in log_of(work_dir)}
    for key in OF_OHEM:
        scalars = accumulator.Scalars(key)
        assert [scalar.step for scalar in scalars] == [2, 3, 4, 5, 6]
        for scalar in scalars:
            assert scalar.value == pytest.approx(by_step[scalar.step][key], rel=1e-6)


def scalars_of(roi_head, images, name, window=2, **hook) -> dict[str, float]:
    """What the hook logs of iterations of one image each."""
    runner = SimpleNamespace(
        model=torch.nn.ModuleDict(dict(roi_head=roi_head)),
        iter=0,
        log_processor=SimpleNamespace(window_size=window),
        message_hub=MessageHub.get_instance(name),
    )
    hook = HOOKS.build(dict(type='mmdet_ohem.MiningHook', **hook))
    hook.before_train(runner)
    for runner.iter, image in enumerate(images):
        hook.before_train_iter(runner, runner.iter)
        if hasattr(roi_head, 'num_stages'):
            loss_of_cascade(roi_head, *image)
        else:
            mine(roi_head, *image)
        hook.after_train_iter(runner, runner.iter)
    return {
        key.removeprefix('train/mining/'): buffer.mean(50)
        for key, buffer in runner.message_hub.log_scalars.items()
    }


@pytest.mark.parametrize('num', [10, 200])  # 200: fewer than that survive NMS
@pytest.mark.parametrize('sampler', ['ohem', 'random'])
def test_scalars_equal_a_computation_by_hand(sampler, num):
    config = stage_config(num=num)
    if sampler == 'random':
        config['sampler'] = dict(type='RandomSampler', num=num, pos_fraction=0.25)
        config['assigner']['neg_iou_thr'] = (0.1, 0.5)
    init = dict(type='Normal', layer='Linear', std=0.5)
    roi_head = build_from(config, head_config(init_cfg=init))
    roi_head.init_weights()
    # An image of nothing but background, then others; the last two are the window.
    images = [make_image(0, num_gts=0)] + [make_image(seed) for seed in range(2)]
    torch.manual_seed(5)
    found = scalars_of(roi_head, images, f'{sampler}{num}', interval=1)

    losses, chosen, dropped, cuts, foreground = [], [], [], [], []
    torch.manual_seed(5)
    for feats, gt_instances, proposals in images:
        sampled = mine(roi_head, feats, gt_instances, proposals)
        boxes = torch.cat([gt_instances.bboxes, proposals.priors])
        plain, labels = plain_losses(
            roi_head, feats, gt_instances, boxes, 'softmax', 'smooth_l1'
        )
        losses.append(plain)
        if sampler == 'ohem':
            inds = select_hard_rois(plain, boxes.numpy(), num)
            left = [i for i in range(len(plain)) if i not in inds]
            dropped.append(
                sum(
                    any(
                        plain[k] > plain[i] and iou(boxes[k].numpy(), box) > 0.7
                        for k in inds
                    )
                    for i, box in ((i, boxes[i].numpy()) for i in left)
                    if plain[i] > plain[inds[-1]] or len(inds) < num
                )
            )
            cuts.append(plain[inds[-1]])
        else:
            inds = [*sampled.pos_inds.tolist(), *sampled.neg_inds.tolist()]
        chosen.append(plain[inds])
        foreground.append(labels[inds] < NUM_CLASSES)
    expected = dict(
        loss_all_rois=np.concatenate(losses[1:]).mean(),
        loss_sampled_rois=np.concatenate(chosen[1:]).mean(),
        foreground_fraction=np.concatenate(foreground[1:]).mean(),
        only_background_fraction=0,
    )
    if sampler == 'ohem':
        assert sum(dropped[1:]) > 0
        expected.update(
            dropped_by_nms=np.mean(dropped[1:]), loss_at_cut=np.mean(cuts[1:])
        )
    assert found == pytest.approx(expected, rel=2e-4)

    first = scalars_of(roi_head, images[:1], f'first {sampler}{num}', interval=1)
    assert first['only_background_fraction'] == 1
    assert first['foreground_fraction'] == 0


@pytest.mark.parametrize('window, read', [(5, [1, 3, 5]), (3, [3, 5]), (1, [5])])
def test_every_sampler_is_read_at_the_same_iterations(window, read):
    """Of seven iterations the second, the fourth and the sixth."""
    images = [make_image(seed) for seed in range(7)]
    for config in (
        stage_config(num=10),
        stage_config(type='RandomSampler', num=10, pos_fraction=0.25),
    ):
        roi_head = build_from(config)
        name = f'{config["sampler"]["type"]} {window}'
        found = scalars_of(roi_head, images, name, window=window, interval=2)
        losses = [
            plain_losses(
                roi_head,
                feats,
                gt_instances,
                torch.cat([gt_instances.bboxes, proposals.priors]),
                'softmax',
                'smooth_l1',
            )[0]
            for feats, gt_instances, proposals in (images[i] for i in read)
        ]
        expected = np.concatenate(losses).mean()
        assert found['loss_all_rois'] == pytest.approx(expected, rel=2e-4), name


def loss_of_cascade(roi_head, feats, gt_instances, proposals):
    sample = DetDataSample(metainfo=dict(img_shape=(128, 128)))
    sample.gt_instances = gt_instances
    proposals = InstanceData(bboxes=proposals.priors.clone())
    roi_head.loss(feats, [proposals], [sample])


def test_a_cascade_has_scalars_for_each_stage():
    roi_head = MODELS.build(
        ConfigDict(
            type='CascadeRoIHead',
            num_stages=2,
            stage_loss_weights=[1, 0.5],
            bbox_roi_extractor=EXTRACTOR,
            bbox_head=[head_config(reg_class_agnostic=True) for _ in range(2)],
            train_cfg=[
                stage_config(),
                stage_config(type='RandomSampler', pos_fraction=0.25),
            ],
        )
    )
    found = scalars_of(roi_head, [make_image(0)], 'cascade', interval=1)
    names = {key.removeprefix('mining/') for key in OF_EVERY_SAMPLER}
    ohem_names = {key.removeprefix('mining/') for key in OF_OHEM}
    assert set(found) == {f's0.{name}' for name in ohem_names} | {
        f's1.{name}' for name in names
    }


@pytest.mark.parametrize('hook', ['MiningHook', 'MinedPicturesHook'])
def test_a_detector_without_roi_head_is_named(hook):
    hook = HOOKS.build(dict(type=f'mmdet_ohem.{hook}', interval=1))
    runner = SimpleNamespace(model=torch.nn.Linear(1, 1), iter=0)
    with pytest.raises(TypeError, match='Linear has no RoI head with a sampler'):
        hook.before_train(runner)
        hook.before_train_iter(runner, 0)


@pytest.mark.parametrize('interval', [0, 2.5, True])
def test_an_interval_is_a_whole_number(interval):
    with pytest.raises(ValueError, match='MiningHook.interval'):
        HOOKS.build(dict(type='mmdet_ohem.MiningHook', interval=interval))


def test_a_cascade_that_ends_early_is_logged_as_far_as_it_came():
    hook = HOOKS.build(dict(type='mmdet_ohem.MiningHook', interval=1))
    roi_head = build_from(stage_config())
    runner = SimpleNamespace(
        model=torch.nn.ModuleDict(dict(roi_head=roi_head)),
        iter=0,
        log_processor=SimpleNamespace(window_size=2),
        message_hub=MessageHub.get_instance('nothing sampled'),
    )
    hook.before_train(runner)
    hook.show(runner, [[]], None)
    assert not runner.message_hub.log_scalars
