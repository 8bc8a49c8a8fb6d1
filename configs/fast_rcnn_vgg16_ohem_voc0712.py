# OHEM, VGG16, 07+12 to VOC07 test: 74.6 mAP in the paper, 75.5 by the release.
_base_ = 'fast_rcnn_vgg16_voc0712.py'

model = dict(
    train_cfg=dict(
        rcnn=dict(
            # No lower bound for background: hard background may lie anywhere.
            assigner=dict(neg_iou_thr=0.5),
            sampler=dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=64),
        )
    )
)
