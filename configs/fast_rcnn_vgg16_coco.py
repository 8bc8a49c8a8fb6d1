# Fast R-CNN, VGG16, COCO train2014 to val2014.
_base_ = [
    '_base_/models/fast_rcnn_vgg16_coco.py',
    '_base_/datasets/coco.py',
    '_base_/schedules/coco_240k.py',
    '_base_/default_runtime.py',
]
