# fast_rcnn_vgg16_ohem_coco.py tested on test-dev 2015: 22.6 AP in the paper.
_base_ = ['fast_rcnn_vgg16_coco_testdev.py', '_base_/ohem.py']

model = _base_.ohem
