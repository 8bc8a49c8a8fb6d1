# Fast R-CNN, VGG16, N = 2, B = 128, bg_lo = 0.1, from torchvision's weights,
# which need no conversion. The paper's (Table 1, row 2) are Caffe's:
# fast_rcnn_vgg16_caffe_voc07.py.
_base_ = [
    '_base_/models/fast_rcnn_vgg16.py',
    '_base_/datasets/voc07.py',
    '_base_/schedules/voc07_40k.py',
    '_base_/default_runtime.py',
]
