# Fast R-CNN, VGG16, 07++12 to VOC12 test: 68.4 mAP in the paper.
_base_ = [
    '_base_/models/fast_rcnn_vgg16.py',
    '_base_/datasets/voc07pp12.py',
    '_base_/schedules/voc12_200k.py',
    '_base_/server_runtime.py',
]
