# OHEM, VGG16, trained on COCO trainval, then on 07++12. The class layers have other
# shapes there, so they start anew. The paper reports it with +M and +B only.
_base_ = 'fast_rcnn_vgg16_ohem_voc07pp12.py'

load_from = 'work_dirs/fast_rcnn_vgg16_ohem_coco_trainval/iter_240000.pth'
