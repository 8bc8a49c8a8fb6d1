# The recipe of the authors' released code, VGG_CNN_M_1024: 62.8 mAP by its authors.
# Also evaluates their released detector, once converted.
_base_ = ['fast_rcnn_vggm_ohem_voc07.py', '_base_/release.py']

globals().update(_base_.release)
