# MMDetection's own Cascade R-CNN with OHEM: each stage mines with its own head. The
# later stages are given what the stage before mined, so NMS alone acts there. `num`
# stays the 512 of the random samplers, half of the RPN's proposals (docs/samplers.md).
_base_ = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'

# A list of the base is replaced as a whole.
ohem = dict(type='mmdet_ohem.OHEMSampler', num=512)
model = dict(
    train_cfg=dict(
        rcnn=[dict(stage, sampler=ohem) for stage in _base_.model.train_cfg.rcnn]
    )
)
