# MMDetection's own Mask R-CNN with OHEM. `num` stays the 512 of the random sampler,
# half of the RPN's proposals: with few of them hardly any background is mined
# (docs/samplers.md).
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

sampler = dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=512)
model = dict(train_cfg=dict(rcnn=dict(sampler=sampler)))
