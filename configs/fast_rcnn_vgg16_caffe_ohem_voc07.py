# fast_rcnn_vgg16_ohem_voc07.py from Caffe's ImageNet weights, and with their input.
# Also evaluates the released VGG16 detector (71.5 mAP by its authors), once converted.
_base_ = 'fast_rcnn_vgg16_caffe_voc07.py'

model = dict(
    train_cfg=dict(
        rcnn=dict(
            # No lower bound for background: hard background may lie anywhere.
            assigner=dict(neg_iou_thr=0.5),
            sampler=dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=64),
        )
    )
)
