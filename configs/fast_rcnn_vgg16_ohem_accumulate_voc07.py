# fast_rcnn_vgg16_ohem_voc07.py in less memory: one image at a time, a step after every
# second.
_base_ = ['fast_rcnn_vgg16_ohem_voc07.py', '_base_/accumulate.py']

globals().update(_base_.accumulate)
