# Fast R-CNN with VGG16 from Caffe's ImageNet weights, as the paper has it.
_base_ = './fast_rcnn_vgg16.py'

# Made by tools/convert_caffe.py from VGG16.v2.caffemodel of Fast R-CNN's ImageNet
# models. For training from scratch set init_cfg=None and frozen_stages=0.
caffe_weights = dict(
    type='mmdet_ohem.ConvertedWeights', checkpoint='checkpoints/vgg16_caffe.pth'
)

model = dict(
    data_preprocessor=_base_.caffe_preprocessor,
    backbone=dict(init_cfg=caffe_weights),
    roi_head=dict(bbox_head=dict(init_cfg=caffe_weights)),
)
