# The paper's Table 1, row 12: OHEM, VGGM, N = 2, B = 128: 62.0 mAP,
# from the ImageNet weights, which exist as a Caffe model only (tools/convert_caffe.py).
_base_ = ['fast_rcnn_vggm_voc07.py', '_base_/ohem.py']

model = _base_.ohem
