# All RoIs, VGG16, N = 2, B = 2048, lr 0.003, from torchvision's weights,
# which need no conversion. The paper's (Table 1, row 10) are Caffe's:
# fast_rcnn_vgg16_caffe_all_voc07.py.
_base_ = 'fast_rcnn_vgg16_bg0_voc07.py'

# B / N RoIs of each image. No bound on the foreground, or some of it would be left out.
model = dict(train_cfg=dict(rcnn=dict(sampler=dict(num=1024, pos_fraction=1.0))))
optim_wrapper = dict(optimizer=dict(lr=0.003))
