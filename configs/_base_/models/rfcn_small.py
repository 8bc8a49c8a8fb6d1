# R-FCN small enough to train from scratch on two CPU cores: the backbone of
# fast_rcnn_small.py at stride 8, without conv5. Anchors are squares of 16 to 128 px.
_base_ = ['./fast_rcnn_small.py', './vgg_rpn.py']

model = dict(
    type='FasterRCNN',
    rpn_head=dict(
        _base_.rpn_head,
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(
            _base_.rpn_head.anchor_generator,
            scales=[2, 4, 8, 16],
            ratios=[1.0],
            strides=[8],
        ),
    ),
    roi_head=dict(
        _delete_=True,
        type='mmdet_ohem.RFCNRoIHead',
        in_channels=64,
        feat_channels=128,
        bbox_roi_extractor=dict(
            type='mmdet_ohem.PSRoIAlignExtractor', output_size=5, featmap_strides=[8]
        ),
        bbox_head=dict(
            type='mmdet_ohem.RFCNBBoxHead',
            num_classes=3,
            bbox_coder=_base_.model.roi_head.bbox_head.bbox_coder,
            loss_cls=_base_.model.roi_head.bbox_head.loss_cls,
            loss_bbox=_base_.model.roi_head.bbox_head.loss_bbox,
        ),
    ),
    train_cfg=dict(
        rpn=_base_.rpn_train_cfg.rpn,
        rpn_proposal=dict(_base_.rpn_test_cfg.rpn, nms_pre=1000, min_bbox_size=4),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(_base_.rpn_test_cfg.rpn, nms_pre=1000, min_bbox_size=4)),
)
