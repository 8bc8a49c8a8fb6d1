# The paper's Table 1, row 1: Fast R-CNN, VGGM, N = 2, B = 128, bg_lo = 0.1: 59.6 mAP,
# from the ImageNet weights, which exist as a Caffe model only (tools/convert_caffe.py).
_base_ = [
    '_base_/models/fast_rcnn_vggm.py',
    '_base_/datasets/voc07.py',
    '_base_/schedules/voc07_40k.py',
    '_base_/default_runtime.py',
]
