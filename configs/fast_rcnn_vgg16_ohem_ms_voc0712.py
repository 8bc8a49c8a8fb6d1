# OHEM +M, VGG16, 07+12 to VOC07 test: 78.9 mAP in the paper, with +B.
_base_ = 'fast_rcnn_vgg16_ohem_voc0712.py'

from mmdet_ohem.datasets import at_several_scales

globals().update(at_several_scales(_base_))
