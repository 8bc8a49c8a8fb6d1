# OHEM, VGG16, COCO train2014 to val2014.
_base_ = ['fast_rcnn_vgg16_coco.py', '_base_/ohem.py']

model = _base_.ohem
