# Fast R-CNN without bg_lo, VGG16, N = 2, B = 128, from torchvision's weights,
# which need no conversion. The paper's (Table 1, row 4) are Caffe's:
# fast_rcnn_vgg16_caffe_bg0_voc07.py.
_base_ = 'fast_rcnn_vgg16_voc07.py'

model = dict(train_cfg=dict(rcnn=dict(assigner=dict(neg_iou_thr=0.5))))
