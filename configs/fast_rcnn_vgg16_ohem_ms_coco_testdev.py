# OHEM +M, VGG16, COCO train2014 to test-dev 2015: 24.4 AP in the paper.
_base_ = 'fast_rcnn_vgg16_ohem_coco_testdev.py'

from mmdet_ohem.datasets import at_several_scales

globals().update(at_several_scales(_base_))
