# MMDetection's own Faster R-CNN with OHEM. `num` is the paper's B/N; the 512 of the
# random sampler would take nearly every RoI that NMS leaves.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    train_cfg=dict(
        rcnn=dict(sampler=dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=64))
    )
)
