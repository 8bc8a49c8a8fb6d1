# R-FCN with ResNet-50 and random sampling. Numbers without another source are those of
# py-R-FCN (models/pascal_voc/ResNet-50/rfcn_end2end, experiments/cfgs), the authors'
# Python version, in which the RPN and R-FCN train together.
_base_ = './vgg_rpn.py'

# The ImageNet weights of He et al., converted from Caffe by Detectron2; conv5 reads its
# layers from the same file.
imagenet_weights = dict(
    type='Pretrained', checkpoint='open-mmlab://detectron2/resnet50_caffe'
)
# Batch normalisation keeps its statistics, its scale and its bias.
frozen_norm = dict(type='BN', requires_grad=False)

model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[103.53, 116.28, 123.675],
        std=[1.0, 1.0, 1.0],
        bgr_to_rgb=False,
        pad_size_divisor=1,
    ),
    # conv1 to conv4, the feature map of the RPN.
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        frozen_stages=1,  # conv1 and conv2
        norm_cfg=frozen_norm,
        norm_eval=True,
        style='caffe',
        init_cfg=imagenet_weights,
    ),
    rpn_head=dict(_base_.rpn_head, in_channels=1024),
    roi_head=dict(
        type='mmdet_ohem.RFCNRoIHead',
        # Dilated, so that the stride stays 16.
        conv5=dict(
            type='ResLayer',
            depth=50,
            stage=3,
            stride=1,
            dilation=2,
            style='caffe',
            norm_cfg=frozen_norm,
            norm_eval=True,
            init_cfg=imagenet_weights,
        ),
        in_channels=2048,
        feat_channels=1024,
        bbox_roi_extractor=dict(
            type='mmdet_ohem.PSRoIAlignExtractor', output_size=7, featmap_strides=[16]
        ),
        bbox_head=dict(
            type='mmdet_ohem.RFCNBBoxHead',
            num_classes=20,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0.0, 0.0, 0.0, 0.0],
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=_base_.rpn_train_cfg.rpn,
        # As many for training as at test.
        rpn_proposal=_base_.rpn_test_cfg.rpn,
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=(0.1, 0.5),  # a tuple: see fast_rcnn_vgg16.py
                min_pos_iou=0.5,
                match_low_quality=False,
                ignore_iof_thr=-1,
            ),
            # B RoIs of each image, a quarter of them foreground.
            sampler=dict(
                type='RandomSampler',
                num=128,
                pos_fraction=0.25,
                neg_pos_ub=-1,
                add_gt_as_proposals=True,
            ),
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=_base_.rpn_test_cfg.rpn,
        # Threshold and number of detections are py-R-FCN's (lib/fast_rcnn/test.py).
        rcnn=dict(
            score_thr=0.05,
            nms=dict(type='nms', iou_threshold=0.3),
            max_per_img=100,
        ),
    ),
)
