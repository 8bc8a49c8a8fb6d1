# What turns a VGG16 config into one that starts from Caffe's ImageNet weights, as the
# paper's networks do: `model = _base_.vgg16_caffe`.

# Made by tools/convert_caffe.py from VGG16.v2.caffemodel of Fast R-CNN's ImageNet
# models. For training from scratch set init_cfg=None and frozen_stages=0.
caffe_weights = dict(
    type='mmdet_ohem.ConvertedWeights', checkpoint='checkpoints/vgg16_caffe.pth'
)
# What Caffe's weights were trained on, and the release's input: BGR, not divided.
caffe_preprocessor = dict(
    type='DetDataPreprocessor',
    mean=[102.9801, 115.9465, 122.7717],
    std=[1.0, 1.0, 1.0],
    bgr_to_rgb=False,
    pad_size_divisor=1,
)

vgg16_caffe = dict(
    data_preprocessor=caffe_preprocessor,
    backbone=dict(init_cfg=caffe_weights),
    roi_head=dict(bbox_head=dict(init_cfg=caffe_weights)),
)
