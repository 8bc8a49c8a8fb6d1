# What turns a config into its OHEM version: `model = _base_.ohem`.
ohem = dict(
    train_cfg=dict(
        rcnn=dict(
            # No lower bound for background: hard background may lie anywhere.
            assigner=dict(neg_iou_thr=0.5),
            # B / N = 128 / 2 RoIs of each image.
            sampler=dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=64),
        )
    )
)
