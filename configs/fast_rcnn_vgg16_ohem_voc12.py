# OHEM, VGG16, VOC12 trainval to VOC12 test: 69.8 mAP in the paper.
_base_ = ['fast_rcnn_vgg16_voc12.py', '_base_/ohem.py']

model = _base_.ohem
