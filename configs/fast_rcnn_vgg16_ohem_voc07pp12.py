# OHEM, VGG16, 07++12 to VOC12 test: 71.9 mAP in the paper.
_base_ = ['fast_rcnn_vgg16_voc07pp12.py', '_base_/ohem.py']

model = _base_.ohem
