default_scope = 'mmdet'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # MMEngine's hook, but a training that is killed leaves whole checkpoints.
    checkpoint=dict(
        type='mmdet_ohem.WholeCheckpointHook',
        by_epoch=False,
        interval=5000,
        max_keep_ckpts=3,
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)
custom_hooks = [
    # With a seed, --resume goes on with the losses of an unbroken run.
    dict(type='mmdet_ohem.SeedEachIterationHook'),
    # The loss over all RoIs and other figures in the log (docs/seeing.md).
    dict(type='mmdet_ohem.MiningHook'),
]
randomness = dict(seed=0)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer'
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)

log_level = 'INFO'
load_from = None
resume = False
