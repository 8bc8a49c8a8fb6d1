_base_ = ['fast_rcnn_small_ms_bccd.py', '_base_/ohem.py']

model = _base_.ohem
