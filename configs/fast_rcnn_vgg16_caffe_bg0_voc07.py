# The paper's Table 1, row 4: Fast R-CNN without bg_lo, VGG16, N = 2, B = 128: 67.5 mAP.
_base_ = ['fast_rcnn_vgg16_bg0_voc07.py', '_base_/caffe.py']

model = _base_.vgg16_caffe
