# fast_rcnn_vgg16_ohem_voc07.py in less memory, as the release trains (iter_size: 2):
# one image at a time, a step after every second. MMEngine counts an iteration per
# image, Caffe one per step, so its 40k are 80k here.
_base_ = 'fast_rcnn_vgg16_ohem_voc07.py'

train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=2)
train_cfg = dict(max_iters=80000, val_interval=80000)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, milestones=[60000], gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=1)
