# Fast R-CNN with VGG16 and the baseline's random sampling, as in the paper's Table 1,
# row 2. Numbers without another source are those of the authors' release.

# torchvision's ImageNet weights, for the backbone and for fc6 and fc7. A path may
# stand here too; for training from scratch set init_cfg=None and frozen_stages=0.
imagenet_weights = dict(
    type='mmdet_ohem.TorchvisionVGG16',
    checkpoint='https://download.pytorch.org/models/vgg16-397923af.pth',
)

# What torchvision's weights were trained on: RGB with this mean and deviation.
data_preprocessor = dict(
    type='DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_size_divisor=1,
)

model = dict(
    type='FastRCNN',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='mmdet_ohem.VGG16',
        frozen_stages=2,  # conv1_1 to conv2_2
        init_cfg=imagenet_weights,
    ),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='mmdet_ohem.RoIPoolExtractor',
            output_size=7,
            out_channels=512,
            featmap_strides=[16],
        ),
        bbox_head=dict(
            type='mmdet_ohem.VGGBBoxHead',
            in_channels=512,
            roi_feat_size=7,
            fc_out_channels=(4096, 4096),
            dropout=0.5,
            num_classes=20,
            # The release takes means and deviations per class from the training
            # set, as ../release.py does; these are its own precomputed ones, the same
            # for all classes.
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0.0, 0.0, 0.0, 0.0],
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
            init_cfg=imagenet_weights,
        ),
    ),
    train_cfg=dict(
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                # bg_lo = 0.1 of the baseline. A tuple: with a list the assigner
                # finds no background at all.
                neg_iou_thr=(0.1, 0.5),
                min_pos_iou=0.5,
                match_low_quality=False,
                ignore_iof_thr=-1,
            ),
            # B / N = 128 / 2 RoIs per image, a quarter of them foreground.
            sampler=dict(
                type='RandomSampler',
                num=64,
                pos_fraction=0.25,
                neg_pos_ub=-1,
                add_gt_as_proposals=True,
            ),
            pos_weight=-1,
            debug=False,
        )
    ),
    test_cfg=dict(
        rcnn=dict(
            # As the release's script tests (--det_thresh 0.00001 --num_dets 2000).
            score_thr=0.00001,
            nms=dict(type='nms', iou_threshold=0.3),
            max_per_img=2000,
        )
    ),
)
