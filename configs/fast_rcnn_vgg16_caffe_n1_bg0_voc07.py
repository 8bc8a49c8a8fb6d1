# The paper's Table 1, row 6: Fast R-CNN without bg_lo, VGG16, N = 1, B = 128: 66.3 mAP.
_base_ = ['fast_rcnn_vgg16_n1_bg0_voc07.py', '_base_/caffe.py']

model = _base_.vgg16_caffe
