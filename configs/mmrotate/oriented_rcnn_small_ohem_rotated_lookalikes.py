_base_ = ['oriented_rcnn_small_rotated_lookalikes.py', '../_base_/ohem.py']

model = _base_.ohem
