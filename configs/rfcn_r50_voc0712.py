_base_ = [
    '_base_/models/rfcn_r50.py',
    '_base_/datasets/voc0712_no_proposals.py',
    '_base_/schedules/voc0712_rfcn.py',
    '_base_/default_runtime.py',
]
