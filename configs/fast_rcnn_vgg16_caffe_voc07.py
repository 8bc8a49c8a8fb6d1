# The paper's Table 1, row 2: Fast R-CNN, VGG16, N = 2, B = 128, bg_lo = 0.1: 67.2 mAP.
_base_ = ['fast_rcnn_vgg16_voc07.py', '_base_/caffe.py']

model = _base_.vgg16_caffe
