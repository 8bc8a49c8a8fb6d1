# Fast R-CNN with VGG16 from Caffe's ImageNet weights, as the paper has it.
_base_ = ['./fast_rcnn_vgg16.py', '../caffe.py']

model = _base_.vgg16_caffe
