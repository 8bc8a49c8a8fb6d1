# OHEM, VGG16, N = 2, B = 128, from torchvision's weights,
# which need no conversion. The paper's (Table 1, row 13) are Caffe's:
# fast_rcnn_vgg16_caffe_ohem_voc07.py.
_base_ = ['fast_rcnn_vgg16_voc07.py', '_base_/ohem.py']

model = _base_.ohem
