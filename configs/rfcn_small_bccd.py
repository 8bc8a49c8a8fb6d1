_base_ = [
    '_base_/models/rfcn_small.py',
    '_base_/datasets/bccd_no_proposals.py',
    '_base_/schedules/small_1200.py',
    '_base_/default_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=len(_base_.classes))))
default_hooks = dict(checkpoint=dict(interval=200))
