_base_ = ['fast_rcnn_small_lookalikes.py', '_base_/ohem.py']

model = _base_.ohem
