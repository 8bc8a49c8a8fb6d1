# MMRotate's own Oriented R-CNN on DOTA with OHEM. `num` is the paper's B/N; raise it
# where a patch of an image holds more objects than that.
_base_ = [
    'mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py',
    '../_base_/ohem.py',
]

model = _base_.ohem
