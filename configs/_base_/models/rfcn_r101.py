# R-FCN with ResNet-101.
_base_ = './rfcn_r50.py'

imagenet_weights = dict(
    type='Pretrained', checkpoint='open-mmlab://detectron2/resnet101_caffe'
)

model = dict(
    backbone=dict(depth=101, init_cfg=imagenet_weights),
    roi_head=dict(conv5=dict(depth=101, init_cfg=imagenet_weights)),
)
