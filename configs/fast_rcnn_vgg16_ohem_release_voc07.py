# The recipe of the authors' released code, VGG16: 71.5 mAP by its authors.
# Also evaluates their released detector, once converted.
_base_ = ['fast_rcnn_vgg16_caffe_ohem_voc07.py', '_base_/release.py']

globals().update(_base_.release)
