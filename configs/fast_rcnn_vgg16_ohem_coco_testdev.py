# fast_rcnn_vgg16_ohem_coco.py tested on test-dev 2015: 22.6 AP in the paper.
_base_ = 'fast_rcnn_vgg16_coco_testdev.py'

model = dict(
    train_cfg=dict(
        rcnn=dict(
            # No lower bound for background: hard background may lie anywhere.
            assigner=dict(neg_iou_thr=0.5),
            sampler=dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=64),
        )
    )
)
test_evaluator = dict(outfile_prefix='work_dirs/{{ fileBasenameNoExtension }}/test-dev')
