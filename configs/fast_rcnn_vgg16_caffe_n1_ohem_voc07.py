# The paper's Table 1, row 11: OHEM, VGG16, N = 1, B = 128: 69.7 mAP.
_base_ = ['fast_rcnn_vgg16_n1_ohem_voc07.py', '_base_/caffe.py']

model = _base_.vgg16_caffe
