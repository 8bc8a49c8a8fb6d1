# The paper's Table 1, row 3: Fast R-CNN without bg_lo, VGGM, N = 2, B = 128: 57.2 mAP.
_base_ = 'fast_rcnn_vggm_voc07.py'

model = dict(train_cfg=dict(rcnn=dict(assigner=dict(neg_iou_thr=0.5))))
