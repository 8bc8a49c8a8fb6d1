# The paper's Table 1, row 13: OHEM, VGG16, N = 2, B = 128: 69.9 mAP.
_base_ = ['fast_rcnn_vgg16_ohem_voc07.py', '_base_/caffe.py']

model = _base_.vgg16_caffe
