# What turns a config of 40k iterations of two images into one that takes one image at a
# time and a step after every second, as the release trains (iter_size: 2):
# `globals().update(_base_.accumulate)`. MMEngine counts an iteration per image, Caffe
# one per step, so its 40k are 80k here.
accumulate = dict(
    train_dataloader=dict(batch_size=1),
    optim_wrapper=dict(accumulative_counts=2),
    train_cfg=dict(max_iters=80000, val_interval=80000),
    param_scheduler=[
        dict(type='MultiStepLR', by_epoch=False, milestones=[60000], gamma=0.1)
    ],
    auto_scale_lr=dict(base_batch_size=1),
)
