# OHEM, VGG16, 07+12 to VOC07 test: 74.6 mAP in the paper, 75.5 by the release.
_base_ = ['fast_rcnn_vgg16_voc0712.py', '_base_/ohem.py']

model = _base_.ohem
