"""What a comparison changes in a config, held against the configs as they are."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from studies.iterations import BatchMaker
from support.tools import ROOT

from mmdet_ohem.compare.config_changes import (
    SAMPLERS,
    fitting_samplers,
    make_run,
    set_sampler,
    why_not,
)
from mmdet_ohem.config import dicts_of
from mmdet_ohem.runs import budget_unit

OHEM = ROOT / 'configs' / 'fast_rcnn_small_ohem_lookalikes.py'
RANDOM = ROOT / 'configs' / 'fast_rcnn_small_lookalikes.py'
TYPES = {
    'random': 'RandomSampler',
    'random-bg0': 'RandomSampler',
    'mmdet-ohem': 'mmdet.OHEMSampler',
    'ohem': 'mmdet_ohem.OHEMSampler',
    'ohem-per-label': 'mmdet_ohem.OHEMSampler',
    'iou-balanced': 'CombinedSampler',
    'libra': 'CombinedSampler',
    'score-hlr': 'ScoreHLRSampler',
    'pisa': 'ScoreHLRSampler',
    'focal': 'RandomSampler',
}


@pytest.mark.parametrize('base', [OHEM, RANDOM], ids=['ohem', 'random'])
@pytest.mark.parametrize('sampler', SAMPLERS)
def test_the_config_of_a_run_changes_the_sampler_and_nothing_else(base, sampler):
    original = Config.fromfile(base)
    run = make_run(original, sampler, seed=7, budget=None)
    assert original.to_dict() == Config.fromfile(base).to_dict()
    rcnn = run.model.train_cfg.rcnn
    assert run.randomness.seed == 7
    assert rcnn.sampler.num == 64
    assert rcnn.sampler.type == TYPES[sampler]
    assert rcnn.assigner.neg_iou_thr == ((0.1, 0.5) if sampler == 'random' else 0.5)
    assert rcnn.sampler.get('nms_per_label', False) == (sampler == 'ohem-per-label')
    is_pisa = run.model.roi_head.type == 'PISARoIHead'
    assert is_pisa == (sampler in ('score-hlr', 'pisa'))
    assert ('carl' in rcnn and 'isr' in rcnn) == (sampler == 'pisa')
    losses = run.model.roi_head.bbox_head
    is_focal = losses.loss_cls.type == 'mmdet_ohem.RetinaFocalLoss'
    assert is_focal == (sampler == 'focal')
    assert (losses.loss_bbox.type == 'BalancedL1Loss') == (sampler == 'libra')
    assert run.custom_hooks == [
        dict(type='mmdet_ohem.SeedEachIterationHook'),
        dict(type='mmdet_ohem.MiningHook', interval=50),
    ]
    for config in (run, original):
        del config.randomness.seed
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
        del config.model.train_cfg.rcnn.sampler
        del config.model.train_cfg.rcnn.assigner.neg_iou_thr
        del config.model.roi_head.type
        del config.model.roi_head.bbox_head.loss_cls
        del config.model.roi_head.bbox_head.loss_bbox
        config.model.train_cfg.rcnn.pop('isr', None)
        config.model.train_cfg.rcnn.pop('carl', None)
        config.custom_hooks = None
        del config.default_hooks.logger, config.default_hooks.checkpoint
    assert run.to_dict() == original.to_dict()


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_every_sampler_trains(sampler):
    torch.manual_seed(0)
    config = make_run(Config.fromfile(OHEM), sampler, seed=0, budget=None)
    init_default_scope('mmdet')
    batch = BatchMaker(num_rois=100)(config)
    detector = MODELS.build(config.model)
    losses = detector(**detector.data_preprocessor(batch, True), mode='loss')
    total, _ = detector.parse_losses(losses)
    total.backward()
    assert {'loss_cls', 'loss_bbox'} <= losses.keys()
    assert torch.isfinite(total) and total > 0


def test_every_stage_of_a_cascade_is_changed_and_keeps_its_own_threshold():
    config = get_config('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py')
    set_sampler(config, 'random')
    stages = config.model.train_cfg.rcnn
    assert [stage.assigner.neg_iou_thr for stage in stages] == [
        (0.1, 0.5),
        (0.1, 0.6),
        (0.1, 0.7),
    ]
    assert [stage.sampler.num for stage in stages] == [512] * 3
    set_sampler(config, 'focal')
    assert [stage.assigner.neg_iou_thr for stage in stages] == [0.5, 0.6, 0.7]
    heads = config.model.roi_head.bbox_head
    assert [head.loss_cls.type for head in heads] == ['mmdet_ohem.RetinaFocalLoss'] * 3
    set_sampler(config, 'libra')
    assert [head.loss_bbox.type for head in heads] == ['BalancedL1Loss'] * 3
    assert not {'score-hlr', 'pisa'} & set(fitting_samplers(config))
    with pytest.raises(ValueError, match='CascadeRoIHead; leave score-hlr out'):
        set_sampler(config, 'score-hlr')


FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'


@pytest.mark.parametrize(
    'sampler, theirs',
    [
        ('libra', 'mmdet::libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py'),
        ('pisa', 'mmdet::pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py'),
    ],
)
def test_whole_methods_are_those_of_mmdetections_configs(sampler, theirs):
    config, theirs = get_config(FASTER_RCNN), get_config(theirs)
    set_sampler(config, sampler)
    if sampler == 'pisa':
        # Twice the proposals, which each sampler could have: not a matter of sampling.
        for part in (theirs.model.train_cfg.rpn_proposal, theirs.model.test_cfg.rpn):
            assert part.pop('nms_pre') == part.pop('max_per_img') == 2000
        for part in (config.model.train_cfg.rpn_proposal, config.model.test_cfg.rpn):
            del part.nms_pre, part.max_per_img
    # The defaults, which their configs leave out.
    sampler = theirs.model.train_cfg.rcnn.sampler
    sampler.setdefault('add_gt_as_proposals', True)
    sampler.pop('neg_pos_ub', None)
    assert config.model.to_dict() == theirs.model.to_dict()


def test_libra_rcnn_itself_stays():
    config = get_config('mmdet::libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py')
    before = config.model.to_dict()
    set_sampler(config, 'libra')
    assert config.model.to_dict() == before


@pytest.mark.parametrize('sampler', ['libra', 'pisa', 'focal'])
def test_a_loss_that_a_head_does_not_have_is_not_replaced(sampler):
    config = get_config(FASTER_RCNN)
    config.model.roi_head.bbox_head.reg_decoded_bbox = True
    assert (sampler in fitting_samplers(config)) == (sampler == 'focal')
    sabl = get_config('mmdet::sabl/sabl-faster-rcnn_r50_fpn_1x_coco.py')
    with pytest.raises(ValueError, match=f'SABLHead does not.*leave {sampler} out'):
        set_sampler(sabl, sampler)


def test_the_balanced_pyramid_of_a_small_neck_has_a_level_to_refine():
    config = get_config(FASTER_RCNN)
    config.model.neck.update(num_outs=2, out_channels=64)
    set_sampler(config, 'libra')
    balanced = MODELS.build(config.model.neck[1])
    levels = [torch.rand(1, 64, 8, 8), torch.rand(1, 64, 4, 4)]
    assert [level.shape for level in balanced(levels)] == [x.shape for x in levels]


def test_the_settings_of_a_user_stay():
    config = get_config('mmdet::pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py')
    # Its RoI head takes no other sampler: UnboundLocalError.
    assert fitting_samplers(config) == ['ohem', 'ohem-per-label', 'score-hlr', 'pisa']
    config.model.train_cfg.rcnn.sampler.add_gt_as_proposals = False
    hook = dict(type='NumClassCheckHook')
    config.custom_hooks = [hook, dict(type='mmdet_ohem.MiningHook', interval=3)]
    config.randomness = dict(deterministic=True)
    run = make_run(config, 'ohem', seed=1, budget=None)
    assert run.model.roi_head.type == 'PISARoIHead'
    assert run.model.train_cfg.rcnn.sampler == dict(
        type='mmdet_ohem.OHEMSampler', num=512, add_gt_as_proposals=False
    )
    assert run.model.train_cfg.rcnn.isr == config.model.train_cfg.rcnn.isr
    assert run.custom_hooks[0] == hook
    assert [hook.type for hook in run.custom_hooks].count('mmdet_ohem.MiningHook') == 1
    assert run.randomness == dict(deterministic=True, seed=1)
    assert run.default_hooks.timer == config.default_hooks.timer


def test_steps_of_the_learning_rate_move_with_the_budget():
    run = make_run(Config.fromfile(OHEM), 'ohem', seed=0, budget=300)
    warm_up, steps = run.param_scheduler
    assert run.train_cfg.max_iters == 300
    assert (warm_up.end, steps.milestones) == (25, [225])  # of 100 and 900 of 1200
    assert run.default_hooks.logger.interval == 15
    assert run.custom_hooks[-1].interval == 15
    assert run.default_hooks.checkpoint.interval == 30

    epochs = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    run = make_run(epochs, 'ohem', seed=0, budget=6)
    warm_up, steps = run.param_scheduler
    assert run.train_cfg.max_epochs == 6 and budget_unit(run) == 'max_epochs'
    assert (warm_up.end, steps.end, steps.milestones) == (500, 6, [4, 6])  # 8, 11
    assert run.default_hooks.checkpoint.by_epoch


PURE_PYTHON = """
from mmdet.models import FastRCNN, StandardRoIHead
from mmdet.models.task_modules import MaxIoUAssigner, RandomSampler

assigner = dict(type=MaxIoUAssigner, neg_iou_thr=0.5)
rcnn = dict(assigner=assigner, sampler=dict(type=RandomSampler, num=16))
roi_head = dict(type=StandardRoIHead, bbox_head=dict())
model = dict(type=FastRCNN, roi_head=roi_head, train_cfg=dict(rcnn=rcnn))
train_cfg = dict(max_iters=40)
test_evaluator = dict(type='CocoMetric')
"""


@pytest.mark.parametrize(
    'budget, warm_up, milestones',
    [(1200, [(0, 100)], [900]), (24, [(0, 2)], [18]), (12, [], [9]), (1, [], [1])],
)
def test_a_budget_too_short_for_the_warm_up_has_none(budget, warm_up, milestones):
    run = make_run(Config.fromfile(OHEM), 'ohem', seed=0, budget=budget)
    *warm_ups, steps = run.param_scheduler
    assert [(s.begin, s.end) for s in warm_ups] == warm_up
    assert steps.milestones == milestones


def test_what_a_roi_head_cannot_have_is_left_out():
    dynamic = get_config('mmdet::dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py')
    assert 'random' not in fitting_samplers(dynamic)  # it sets its own bounds
    assert 'random-bg0' in fitting_samplers(dynamic)
    crowd = get_config('mmdet::crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py')
    with pytest.raises(ValueError, match='MultiInstanceRoIHead, which gives one loss'):
        fitting_samplers(crowd)


@pytest.mark.parametrize('evaluator', [None, dict(type='CocoMetric', format_only=True)])
def test_a_test_set_without_annotations_is_refused_at_the_start(evaluator):
    config = Config.fromfile(OHEM)
    config.test_evaluator = evaluator
    with pytest.raises(ValueError, match='test_evaluator gives no mAP'):
        make_run(config, 'ohem', seed=0, budget=None)


def test_a_pure_python_config_becomes_a_run_too(tmp_path):
    (tmp_path / 'pure.py').write_text(PURE_PYTHON)
    config = Config.fromfile(tmp_path / 'pure.py')
    run = make_run(config, 'score-hlr', seed=0, budget=20)
    (tmp_path / 'run.py').write_text(run.pretty_text)
    run = Config.fromfile(tmp_path / 'run.py')
    assert run.model.type == 'mmdet.models.FastRCNN'
    assert run.model.train_cfg.rcnn.sampler.type == 'ScoreHLRSampler'
    assert run.model.train_cfg.rcnn.sampler.num == 16
    assert run.train_cfg.max_iters == 20


@pytest.mark.parametrize(
    'config, words',
    [
        (dict(), 'model has no roi_head'),
        (dict(model=dict(type='RetinaNet')), 'model has no roi_head'),
        (dict(model=dict(roi_head=dict(), train_cfg=None)), 'no roi_head with'),
        (
            dict(
                model=dict(
                    roi_head=dict(type='StandardRoIHead'),
                    train_cfg=dict(
                        rcnn=dict(
                            assigner=dict(type='HungarianAssigner'),
                            sampler=dict(type='PseudoSampler'),
                        )
                    ),
                )
            ),
            'needs sampler.num.*PseudoSampler',
        ),
    ],
)
def test_a_config_without_a_sampler_to_change_is_named(config, words):
    config = Config(config)
    assert why_not(config, 'ohem')
    with pytest.raises(ValueError, match=words):
        fitting_samplers(config)
    with pytest.raises(ValueError, match=words):
        make_run(config, 'ohem', seed=0, budget=None)


def test_a_config_without_a_length_is_named():
    config = Config.fromfile(OHEM)
    del config.train_cfg.max_iters
    with pytest.raises(ValueError, match='lookalikes.py: train_cfg has neither'):
        make_run(config, 'ohem', seed=0, budget=10)


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_samplers_of_mmdetection_are_named_so_in_another_scope(sampler):
    """MMRotate's registries do not look in MMDetection's."""
    config = Config.fromfile(RANDOM)
    config.default_scope = 'mmrotate'
    set_sampler(config, sampler)
    model = config.model
    head = model.roi_head.bbox_head
    parts = [model.train_cfg.rcnn.sampler]
    parts += [head.loss_cls] if sampler == 'focal' else []
    parts += [head.loss_bbox] if sampler == 'libra' else []
    kinds = [part['type'] for part in dicts_of(parts)]
    assert all(kind.startswith(('mmdet.', 'mmdet_ohem.')) for kind in kinds), kinds


def test_what_cannot_be_compared_in_a_rotated_detector_is_said():
    config = Config.fromfile(RANDOM)
    config.model.data_preprocessor.boxtype2tensor = False
    assert 'Score-HLR weighs RoIs of four numbers' in why_not(config, 'score-hlr')
    assert set(SAMPLERS) - set(fitting_samplers(config)) == {'score-hlr', 'pisa'}


def test_detic_is_refused_by_its_key():
    config = Config.fromfile(RANDOM)
    config.model.roi_head.bbox_head.type = 'DeticBBoxHead'
    with pytest.raises(ValueError, match='bbox_head.type=DeticBBoxHead, whose class'):
        fitting_samplers(config)
