# Fast R-CNN, VGG16, 07+12 to VOC07 test: 70.0 mAP in the paper.
_base_ = [
    '_base_/models/fast_rcnn_vgg16.py',
    '_base_/datasets/voc0712.py',
    '_base_/schedules/voc0712_80k.py',
    '_base_/default_runtime.py',
]
