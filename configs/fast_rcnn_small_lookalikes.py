_base_ = [
    '_base_/models/fast_rcnn_small.py',
    '_base_/datasets/lookalikes.py',
    '_base_/schedules/small_1200.py',
    '_base_/default_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=len(_base_.classes))))
# All are kept: they are small, and pictures and reports look back.
default_hooks = dict(checkpoint=dict(interval=200, max_keep_ckpts=-1))
