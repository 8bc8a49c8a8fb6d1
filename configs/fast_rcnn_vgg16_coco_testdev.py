# fast_rcnn_vgg16_coco.py tested on test-dev 2015: 19.7 AP in the paper.
_base_ = [
    '_base_/models/fast_rcnn_vgg16_coco.py',
    '_base_/datasets/coco_testdev.py',
    '_base_/schedules/coco_240k.py',
    '_base_/server_runtime.py',
]
