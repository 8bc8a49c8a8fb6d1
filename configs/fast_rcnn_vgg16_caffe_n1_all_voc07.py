# The paper's Table 1, row 9: all RoIs, VGG16, N = 1, B = 2048, lr 0.003: 67.5 mAP.
_base_ = ['fast_rcnn_vgg16_n1_all_voc07.py', '_base_/caffe.py']

model = _base_.vgg16_caffe
