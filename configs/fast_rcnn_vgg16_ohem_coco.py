# OHEM, VGG16, COCO train2014 to val2014.
_base_ = 'fast_rcnn_vgg16_coco.py'

model = dict(
    train_cfg=dict(
        rcnn=dict(
            # No lower bound for background: hard background may lie anywhere.
            assigner=dict(neg_iou_thr=0.5),
            sampler=dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=64),
        )
    )
)
