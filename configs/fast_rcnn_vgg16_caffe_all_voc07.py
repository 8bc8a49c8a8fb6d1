# The paper's Table 1, row 10: all RoIs, VGG16, N = 2, B = 2048, lr 0.003: 68.7 mAP.
_base_ = ['fast_rcnn_vgg16_all_voc07.py', '_base_/caffe.py']

model = _base_.vgg16_caffe
