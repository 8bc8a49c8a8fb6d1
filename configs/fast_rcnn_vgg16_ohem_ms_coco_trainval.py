# OHEM +M, VGG16, COCO train2014 and val2014 to test-dev 2015: 25.6 AP on the
# poster, 25.5 in the text of the paper.
_base_ = 'fast_rcnn_vgg16_ohem_coco_trainval.py'

from mmdet_ohem.datasets import at_several_scales

globals().update(at_several_scales(_base_))
