# MMRotate's own Oriented R-CNN on DOTA with OHEM. `num` stays the 512 of the random
# sampler: with few RoIs hardly any background is mined (docs/samplers.md).
_base_ = 'mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py'

sampler = dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=512)
model = dict(train_cfg=dict(rcnn=dict(sampler=sampler)))
