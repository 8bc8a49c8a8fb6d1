# OHEM +M, VGG16, 07++12 to VOC12 test: 76.3 mAP in the paper, with +B.
_base_ = 'fast_rcnn_vgg16_ohem_voc07pp12.py'

from mmdet_ohem.datasets import at_several_scales

globals().update(at_several_scales(_base_))
