# The paper's Table 1, row 2: Fast R-CNN, VGG16, N = 2, B = 128, bg_lo = 0.1: 67.2 mAP.
_base_ = [
    '_base_/models/fast_rcnn_vgg16.py',
    '_base_/datasets/voc07.py',
    '_base_/schedules/voc07_40k.py',
    '_base_/default_runtime.py',
]
