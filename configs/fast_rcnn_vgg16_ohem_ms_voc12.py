# OHEM +M, VGG16, VOC12 trainval to VOC12 test: 72.9 mAP in the paper, with +B.
_base_ = 'fast_rcnn_vgg16_ohem_voc12.py'

from mmdet_ohem.datasets import at_several_scales

globals().update(at_several_scales(_base_))
