# The small network from scratch: minutes on a CPU.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1200, val_interval=1200)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=False, milestones=[900], gamma=0.1),
]

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.04, momentum=0.9, weight_decay=0.0005),
    clip_grad=dict(max_norm=35),
)

auto_scale_lr = dict(enable=False, base_batch_size=2)
