# MMDetection's Faster R-CNN with FPN, small enough to train from scratch on a CPU: a
# ResNet-18 of a quarter of the width. 250 proposals of an image and 128 RoIs to train
# on are MMDetection's 1000 and 512 on images of a quarter of the area or less.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '_base_/datasets/bccd_no_proposals.py',
    '_base_/schedules/small_1200.py',
    '_base_/default_runtime.py',
]

channels = 64
model = dict(
    backbone=dict(
        depth=18,
        base_channels=16,
        frozen_stages=-1,
        norm_cfg=dict(_delete_=True, type='GN', num_groups=8),
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(
        in_channels=[16, 32, 64, 128], out_channels=channels, start_level=1, num_outs=4
    ),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4], strides=[8, 16, 32, 64]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(output_size=5, sampling_ratio=1),
            out_channels=channels,
            featmap_strides=[8, 16, 32],
        ),
        bbox_head=dict(
            in_channels=channels,
            fc_out_channels=128,
            roi_feat_size=5,
            num_classes=len(_base_.classes),
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=250),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=250, max_per_img=250)),
)
# COCO's ten thresholds: their mean, AP50 and AP75.
iou_thrs = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
test_evaluator = dict(iou_thrs=iou_thrs)
val_evaluator = test_evaluator
default_hooks = dict(checkpoint=dict(interval=200))
