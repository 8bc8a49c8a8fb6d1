# OHEM, VGG16, COCO train2014 and val2014 to test-dev 2015. The paper reports it with +M
# only: 25.5 AP.
_base_ = [
    '_base_/models/fast_rcnn_vgg16_coco.py',
    '_base_/datasets/coco_trainval.py',
    '_base_/schedules/coco_240k.py',
    '_base_/default_runtime.py',
]

model = dict(
    train_cfg=dict(
        rcnn=dict(
            # No lower bound for background: hard background may lie anywhere.
            assigner=dict(neg_iou_thr=0.5),
            sampler=dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=64),
        )
    ),
)
val_cfg = None
test_evaluator = dict(outfile_prefix='work_dirs/{{ fileBasenameNoExtension }}/test-dev')
