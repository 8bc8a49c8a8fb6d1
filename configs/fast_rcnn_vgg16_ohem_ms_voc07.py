# Multi-scale training and testing, the paper's +M, with OHEM: 70.7 mAP trained on
# several scales, 72.9 tested on them too (--tta), 75.1 with +B.
_base_ = ['fast_rcnn_vgg16_ms_voc07.py', '_base_/ohem.py']

model = _base_.ohem
