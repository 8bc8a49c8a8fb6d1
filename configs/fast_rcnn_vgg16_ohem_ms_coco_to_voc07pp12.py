# OHEM +M, VGG16, trained on COCO trainval, then on 07++12: 80.1 mAP in the paper, with
# +B. The class layers have other shapes there, so they start anew.
_base_ = 'fast_rcnn_vgg16_ohem_ms_voc07pp12.py'

load_from = 'work_dirs/fast_rcnn_vgg16_ohem_ms_coco_trainval/iter_240000.pth'
