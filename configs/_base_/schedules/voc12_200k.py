# 200k iterations, lr times 0.1 every 40k, for VOC12 and 07++12: the paper, from memory.
_base_ = './voc07_40k.py'

train_cfg = dict(max_iters=200000)
val_cfg = None  # VOC12's test set has no public annotations
param_scheduler = [
    dict(
        type='MultiStepLR',
        by_epoch=False,
        milestones=[40000, 80000, 120000, 160000],
        gamma=0.1,
    )
]
