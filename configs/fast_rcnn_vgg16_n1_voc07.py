# Fast R-CNN, VGG16, N = 1, B = 128, bg_lo = 0.1, from torchvision's weights,
# which need no conversion. The paper's (Table 1, row 5) are Caffe's:
# fast_rcnn_vgg16_caffe_n1_voc07.py.
_base_ = 'fast_rcnn_vgg16_voc07.py'

model = dict(train_cfg=dict(rcnn=dict(sampler=dict(num=128))))
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=1)
