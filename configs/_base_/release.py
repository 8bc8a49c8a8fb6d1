# What turns an OHEM config with Caffe's weights into the recipe of the authors'
# released code: `globals().update(_base_.release)`.
_base_ = './accumulate.py'

release = dict(
    _base_.accumulate,
    model=dict(
        # Box targets normalised with each class's own mean and deviation.
        roi_head=dict(bbox_head=dict(type='mmdet_ohem.ClasswiseVGGBBoxHead')),
        train_cfg=dict(
            rcnn=dict(sampler=dict(nms_per_label=True, readonly_dropout=True))
        ),
    ),
    default_hooks=dict(
        box_target_statistics=dict(type='mmdet_ohem.BoxTargetStatisticsHook')
    ),
)
