# The RPN on conv5 of VGG, for the model files of the detectors that have one. Numbers
# are those of py-faster-rcnn (lib/fast_rcnn/config.py, lib/rpn).
rpn_head = dict(
    type='RPNHead',
    in_channels=512,
    feat_channels=512,
    # 9 anchors: areas of 128, 256 and 512 px squared, three shapes each.
    anchor_generator=dict(
        type='AnchorGenerator',
        scales=[8, 16, 32],
        ratios=[0.5, 1.0, 2.0],
        strides=[16],
        center_offset=0.5,  # in the middle of their cell
    ),
    bbox_coder=dict(
        type='DeltaXYWHBBoxCoder',
        target_means=[0.0, 0.0, 0.0, 0.0],
        target_stds=[1.0, 1.0, 1.0, 1.0],
    ),
    loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
    loss_bbox=dict(type='SmoothL1Loss', beta=1.0 / 9, loss_weight=1.0),  # sigma 3
)
rpn_train_cfg = dict(
    rpn=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.7,
            neg_iou_thr=0.3,
            min_pos_iou=0.3,
            match_low_quality=True,
            ignore_iof_thr=-1,
        ),
        # The RPN keeps random sampling: OHEM mines the RoIs that it proposes.
        sampler=dict(
            type='RandomSampler',
            num=256,
            pos_fraction=0.5,
            neg_pos_ub=-1,
            add_gt_as_proposals=False,
        ),
        allowed_border=0,  # anchors that leave the image are not trained
        pos_weight=-1,
        debug=False,
    ),
    # The smallest side is in pixels of the network's input here, of the image there.
    rpn_proposal=dict(
        nms_pre=12000,
        max_per_img=2000,
        nms=dict(type='nms', iou_threshold=0.7),
        min_bbox_size=16,
    ),
)
rpn_test_cfg = dict(
    rpn=dict(
        nms_pre=6000,
        max_per_img=300,
        nms=dict(type='nms', iou_threshold=0.7),
        min_bbox_size=16,
    )
)
