# OHEM, VGG16, VOC12 trainval to VOC12 test: 69.8 mAP in the paper.
_base_ = 'fast_rcnn_vgg16_voc12.py'

model = dict(
    train_cfg=dict(
        rcnn=dict(
            # No lower bound for background: hard background may lie anywhere.
            assigner=dict(neg_iou_thr=0.5),
            sampler=dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=64),
        )
    )
)
test_evaluator = dict(out_dir='work_dirs/{{ fileBasenameNoExtension }}')
