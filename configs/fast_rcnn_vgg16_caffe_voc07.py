# fast_rcnn_vgg16_voc07.py from Caffe's ImageNet weights, and with their input.
_base_ = [
    '_base_/models/fast_rcnn_vgg16_caffe.py',
    '_base_/datasets/voc07.py',
    '_base_/schedules/voc07_40k.py',
    '_base_/default_runtime.py',
]
