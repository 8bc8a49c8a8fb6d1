# The RPN alone, for tools/train_alternating.sh: 80k iterations of one image, lr times
# 0.1 at 60k, as py-faster-rcnn has it. Its test writes proposals.
_base_ = [
    '_base_/models/faster_rcnn_vgg16.py',
    '_base_/datasets/voc07_no_proposals.py',
    '_base_/schedules/voc07_40k.py',
    '_base_/default_runtime.py',
]

model = dict(
    _delete_=True,
    type='RPN',
    data_preprocessor=_base_.data_preprocessor,
    backbone=_base_.model.backbone,
    neck=None,
    rpn_head=_base_.rpn_head,
    train_cfg=_base_.rpn_train_cfg,
    # What Fast R-CNN trains on: all boxes go through NMS, more of them stay.
    test_cfg=dict(
        rpn=dict(
            nms_pre=0,
            max_per_img=2000,
            nms=dict(type='nms', iou_threshold=0.7),
            min_bbox_size=16,
        )
    ),
)

train_dataloader = dict(batch_size=1)
train_cfg = dict(max_iters=80000)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, milestones=[60000], gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=1)

# Proposals have no class, and so no mAP to validate by.
val_dataloader = None
val_cfg = None
val_evaluator = None
test_evaluator = dict(
    _delete_=True, type='DumpProposals', output_dir='work_dirs/rpn_vgg16_voc07'
)
# There are no RoIs to look at.
custom_hooks = [dict(type='mmdet_ohem.SeedEachIterationHook')]
