# The release's script for 07+12 runs its solver for VOC07 on to 80k iterations: lr
# times 0.1 every 30k (experiments/scripts/fast_rcnn_ohem_07tv12tv.sh, stepsize).
_base_ = './voc07_40k.py'

train_cfg = dict(max_iters=80000, val_interval=80000)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, milestones=[30000, 60000], gamma=0.1)
]
