# The paper's Table 1, row 5: Fast R-CNN, VGG16, N = 1, B = 128, bg_lo = 0.1: 66.3 mAP.
_base_ = ['fast_rcnn_vgg16_n1_voc07.py', '_base_/caffe.py']

model = _base_.vgg16_caffe
