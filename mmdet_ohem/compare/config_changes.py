"""What a comparison of samplers changes in a config."""

import copy
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mmdet_ohem.config import as_list, dicts_of, rcnn_stages, type_name
from mmdet_ohem.mining import why_unfit
from mmdet_ohem.runs import budget_unit, set_budget

# What replaces the sampler; `num` stays the config's. Fast R-CNN samples a quarter of
# foreground (Girshick, ICCV 2015).
QUARTER = dict(pos_fraction=0.25)
IOU_BALANCED = dict(  # as in MMDetection's configs of Libra R-CNN
    type='CombinedSampler',
    pos_sampler=dict(type='InstanceBalancedPosSampler'),
    neg_sampler=dict(
        type='IoUBalancedNegSampler', floor_thr=-1, floor_fraction=0, num_bins=3
    ),
    **QUARTER,
)
# As in MMDetection's configs of PISA.
SCORE_HLR = dict(type='ScoreHLRSampler', k=0.5, bias=0.0, **QUARTER)
SAMPLERS = {
    'random': dict(type='RandomSampler', **QUARTER),
    'random-bg0': dict(type='RandomSampler', **QUARTER),
    'mmdet-ohem': dict(type='mmdet.OHEMSampler', **QUARTER),
    'ohem': dict(type='mmdet_ohem.OHEMSampler'),
    'ohem-per-label': dict(type='mmdet_ohem.OHEMSampler', nms_per_label=True),
    'iou-balanced': IOU_BALANCED,
    'libra': IOU_BALANCED,
    'score-hlr': SCORE_HLR,
    'pisa': SCORE_HLR,
    'focal': dict(type='RandomSampler', **QUARTER),
}
LABELS = {
    'random': 'random, bg_lo 0.1 (Fast R-CNN)',
    'random-bg0': 'random, bg_lo 0',
    'mmdet-ohem': "MMDetection's OHEMSampler",
    'ohem': '**mmdet_ohem.OHEMSampler**',
    'ohem-per-label': '**mmdet_ohem.OHEMSampler**, nms_per_label=True',
    'iou-balanced': 'IoU-balanced (Libra R-CNN)',
    'libra': 'Libra R-CNN, the whole method',
    'score-hlr': 'Score-HLR (PISA)',
    'pisa': 'PISA, the whole method',
    'focal': 'random, bg_lo 0, focal loss',
}
# Background of these has a lower bound (Fast R-CNN's bg_lo); of the others it has none.
BG_LO = {'random': 0.1}
# These change the loss too, so that it is no measure for the others.
OWN_LOSS = ('libra', 'pisa', 'focal')
FOCAL_LOSS = dict(type='mmdet_ohem.RetinaFocalLoss')
# As in MMDetection's configs: libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py and
# pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py.
BALANCED_L1 = dict(
    type='BalancedL1Loss', alpha=0.5, gamma=1.5, beta=1.0, loss_weight=1.0
)
BFP_REFINE_LEVEL = 2
LIBRA_RPN_NEG_POS_UB = 5
PISA_SMOOTH_L1 = dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0)
ISR, CARL = dict(k=2, bias=0), dict(k=1, bias=0.2)
# Iterations between two lines of the log, or fewer in a short training.
LOG_INTERVAL = 50
LINES_PER_RUN = 20
CHECKPOINTS_PER_RUN = 10


def set_sampler(config: Config, name: str) -> None:
    """Change how a two-stage detector samples RoIs, in place.

    Args:
        config: with ``model.train_cfg.rcnn``, a dict or, for a cascade, a list.
        name: key of ``SAMPLERS``.

    Raises:
        ValueError: see `why_not`.
    """
    if reason := why_not(config, name):
        raise ValueError(f'{_name(config)}: {reason}')
    for rcnn in as_list(config.model.train_cfg.rcnn):
        low, high = BG_LO.get(name, 0), _upper(rcnn.assigner.neg_iou_thr)
        rcnn.assigner.neg_iou_thr = (low, high) if low else high
        kept = {
            key: rcnn.sampler[key]
            for key in ('num', 'add_gt_as_proposals')
            if key in rcnn.sampler
        }
        sampler = ConfigDict(copy.deepcopy(SAMPLERS[name]), **kept)
        rcnn.sampler = _of_mmdet(sampler, config)
    heads = as_list(config.model.roi_head.bbox_head)
    if name in ('score-hlr', 'pisa'):
        # The one RoI head that takes the weights which its sampler returns.
        config.model.roi_head.type = 'PISARoIHead'
    if name == 'pisa':
        config.model.train_cfg.rcnn.update(isr=dict(ISR), carl=dict(CARL))
        heads[0].loss_bbox = ConfigDict(PISA_SMOOTH_L1)
    if name == 'libra':
        _make_libra(config)
        for head in heads:
            head.loss_bbox = _of_mmdet(ConfigDict(BALANCED_L1), config)
    if name == 'focal':
        for head in heads:
            head.loss_cls = ConfigDict(FOCAL_LOSS)


def _make_libra(config: Config) -> None:
    """Libra R-CNN outside the RoI head: the balanced pyramid after an FPN, and the
    bound on the background that an RPN samples."""
    necks = as_list(config.model.get('neck') or [])
    if necks and type_name(necks[-1]) == 'FPN':
        balanced = dict(
            type='BFP',
            in_channels=necks[-1].out_channels,
            num_levels=necks[-1].num_outs,
            refine_level=min(BFP_REFINE_LEVEL, necks[-1].num_outs - 1),
            refine_type='non_local',
        )
        config.model.neck = [*necks, _of_mmdet(ConfigDict(balanced), config)]
    rpn = config.model.train_cfg.get('rpn')
    if rpn and type_name(rpn.sampler) == 'RandomSampler':
        rpn.sampler.neg_pos_ub = LIBRA_RPN_NEG_POS_UB


def _of_mmdet(part: ConfigDict, config: Config) -> ConfigDict:
    """A part of MMDetection, by names that are found from the config's scope:
    MMRotate's registries do not look in MMDetection's."""
    if config.get('default_scope', 'mmdet') != 'mmdet':
        for inner in dicts_of(part):
            if 'type' in inner and '.' not in inner['type']:
                inner['type'] = f'mmdet.{inner["type"]}'
    return part


def fitting_samplers(config: Config) -> list[str]:
    """Those of ``SAMPLERS`` that can take the place of a config's.

    Raises:
        ValueError: none can; see `why_not`.
    """
    fitting = [name for name in SAMPLERS if not why_not(config, name)]
    if not fitting:
        raise ValueError(f'{_name(config)}: {why_not(config, "ohem")}')
    return fitting


def why_not(config: Config, name: str) -> str | None:
    """The reason why a sampler cannot take the place of a config's, or None."""
    model = config.get('model') or {}
    roi_head = model.get('roi_head')
    stages = rcnn_stages(model)
    if roi_head is None or not all('sampler' in stage for stage in stages):
        return (
            'model has no roi_head with train_cfg.rcnn.sampler, whose samplers could '
            'be compared; give the config of a two-stage detector.'
        )
    for stage in stages:
        if 'num' not in stage.sampler or 'neg_iou_thr' not in stage.assigner:
            return (
                'train_cfg.rcnn needs sampler.num, the RoIs to train on, and '
                'assigner.neg_iou_thr; it has '
                f'sampler={dict(stage.sampler)}, assigner={dict(stage.assigner)}.'
            )
    head = type_name(roi_head)
    if reason := why_unfit(roi_head):
        return f'no sampler can be compared in {head}, which {reason}.'
    if name in BG_LO and head == 'DynamicRoIHead':
        return f'DynamicRoIHead sets its own bounds; leave {name} out of --samplers.'
    is_hlr = name in ('score-hlr', 'pisa')
    if is_hlr and head not in ('StandardRoIHead', 'PISARoIHead'):
        return (
            "Score-HLR works with MMDetection's StandardRoIHead and PISARoIHead "
            f'alone, not with {head}; leave {name} out of --samplers.'
        )
    is_rotated = not (model.get('data_preprocessor') or {}).get('boxtype2tensor', True)
    if is_hlr and is_rotated:
        return (
            'Score-HLR weighs RoIs of four numbers, and those of this detector may be '
            f'rotated; leave {name} out of --samplers.'
        )
    for bbox_head in as_list(roi_head.get('bbox_head')) if name in OWN_LOSS else []:
        if 'loss_cls' not in bbox_head or 'loss_bbox' not in bbox_head:
            return (
                f'{name} replaces a loss, loss_cls or loss_bbox, and '
                f'{type_name(bbox_head)} does not have both; leave {name} out of '
                '--samplers.'
            )
        if name != 'focal' and bbox_head.get('reg_decoded_bbox'):
            return (
                f'{name} replaces loss_bbox by one of box deltas, and '
                f'{type_name(bbox_head)} compares boxes (reg_decoded_bbox=True); leave '
                f'{name} out of --samplers.'
            )
    if head == 'PISARoIHead' and not SAMPLERS[name]['type'].startswith(
        ('ScoreHLR', 'mmdet_ohem')
    ):
        return (
            "MMDetection's PISARoIHead fails with samplers that give no weights (its "
            f'neg_label_weight is unbound); leave {name} out of --samplers.'
        )
    return None


def make_run(
    config: Config,
    sampler: str,
    seed: int,
    budget: int | None,
    lr: float | None = None,
) -> Config:
    """The config of one run of a comparison.

    It trains without validation in between, logs the loss over all RoIs, and leaves
    checkpoints from which a run that was cut off goes on as if it had not been.

    Args:
        config: what is compared; it stays as it is.
        sampler: key of ``SAMPLERS``.
        seed: ``randomness.seed``.
        budget: max_iters, or max_epochs of a config that counts epochs; None: as in
            the config. Steps of the learning rate move in proportion.
        lr: the learning rate; None: the config's.

    Raises:
        ValueError: see `why_not`; or the config says neither max_iters nor max_epochs,
            or nothing is evaluated at its end.
    """
    config = copy.deepcopy(config)
    set_sampler(config, sampler)
    evaluators = as_list(config.get('test_evaluator'))
    if not any(e and not e.get('format_only') for e in evaluators):
        raise ValueError(
            f'{_name(config)}: test_evaluator gives no mAP to compare (format_only, or '
            'none at all); take that of val_evaluator, and its test_dataloader.'
        )
    config.randomness = dict(config.get('randomness') or {}, seed=seed)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.pop('work_dir', None)
    if lr is not None:
        config.optim_wrapper.optimizer.lr = lr
    unit = budget_unit(config)
    if budget is not None:
        set_budget(config, budget)
    length = config.train_cfg[unit]

    by_epoch = unit == 'max_epochs'
    if by_epoch:
        # See SeedEachIterationHook.
        config.train_dataloader.persistent_workers = False
        config.train_dataloader.worker_init_fn = dict(type='mmdet_ohem.keep_seed')
        interval = LOG_INTERVAL
    else:
        interval = max(1, min(LOG_INTERVAL, length // LINES_PER_RUN))
    config.default_hooks = dict(
        config.get('default_hooks') or {},
        logger=dict(type='LoggerHook', interval=interval),
        checkpoint=dict(
            type='mmdet_ohem.WholeCheckpointHook',
            by_epoch=by_epoch,
            interval=max(1, length // CHECKPOINTS_PER_RUN),
            # Two: one to fall back on.
            max_keep_ckpts=-1 if _keeps_all(config) else 2,
        ),
    )
    ours = ('SeedEachIterationHook', 'MiningHook')
    config.custom_hooks = [
        *(
            hook
            for hook in config.get('custom_hooks') or []
            if type_name(hook) not in ours
        ),
        dict(type='mmdet_ohem.SeedEachIterationHook'),
        dict(type='mmdet_ohem.MiningHook', interval=interval),
    ]
    return config


def _keeps_all(config: Config) -> bool:
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    return hook.get('max_keep_ckpts') == -1


def _upper(neg_iou_thr: float | tuple) -> float:
    return neg_iou_thr[1] if isinstance(neg_iou_thr, (list, tuple)) else neg_iou_thr


def _name(config: Config) -> str:
    return Path(config.filename).name if config.filename else 'The config'
