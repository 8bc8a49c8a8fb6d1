# Fast R-CNN, VGG16, VOC12 trainval to VOC12 test: 65.7 mAP in the paper.
_base_ = [
    '_base_/models/fast_rcnn_vgg16.py',
    '_base_/datasets/voc12.py',
    '_base_/schedules/voc12_200k.py',
    '_base_/server_runtime.py',
]
