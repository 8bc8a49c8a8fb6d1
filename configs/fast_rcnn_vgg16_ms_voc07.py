# Fast R-CNN with +M, the paper's multi-scale training and testing: 67.7 mAP trained on
# five scales, 71.2 tested on them too (--tta), 72.4 with iterative boxes.
_base_ = 'fast_rcnn_vgg16_voc07.py'

from mmdet_ohem.datasets import at_several_scales

globals().update(at_several_scales(_base_))
