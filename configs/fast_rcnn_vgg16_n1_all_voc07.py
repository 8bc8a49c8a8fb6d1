# All RoIs, VGG16, N = 1, B = 2048, lr 0.003, from torchvision's weights,
# which need no conversion. The paper's (Table 1, row 9) are Caffe's:
# fast_rcnn_vgg16_caffe_n1_all_voc07.py.
_base_ = 'fast_rcnn_vgg16_all_voc07.py'

model = dict(train_cfg=dict(rcnn=dict(sampler=dict(num=2048))))
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=1)
