# 240k iterations, lr times 0.1 at 160k: the paper, from memory.
_base_ = './voc07_40k.py'

train_cfg = dict(max_iters=240000, val_interval=240000)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, milestones=[160000], gamma=0.1)
]
