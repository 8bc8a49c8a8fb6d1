# The paper's Table 1, row 13: OHEM, VGG16, N = 2, B = 128: 69.9 mAP.
_base_ = 'fast_rcnn_vgg16_voc07.py'

model = dict(
    train_cfg=dict(
        rcnn=dict(
            # No lower bound for background: hard background may lie anywhere.
            assigner=dict(neg_iou_thr=0.5),
            sampler=dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=64),
        )
    )
)
