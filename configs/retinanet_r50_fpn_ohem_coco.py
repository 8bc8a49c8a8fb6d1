# RetinaNet with the hardest anchors of a batch in place of the focal loss: 128 for each
# of the two images, over all levels. The focal loss's own paper (Lin et al., ICCV 2017,
# Table 1d) found such mining inferior to it; this is for comparing the two.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    bbox_head=dict(
        type='mmdet_ohem.AllLevelsRetinaHead',
        loss_cls=dict(
            _delete_=True,
            type='mmdet_ohem.OHEMLoss',
            num=256,
            use_sigmoid=True,
            loss=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        ),
    )
)
