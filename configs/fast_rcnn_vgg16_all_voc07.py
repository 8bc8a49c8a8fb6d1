# The paper's Table 1, row 10: all RoIs, VGG16, N = 2, B = 2048, lr 0.003: 68.7 mAP.
_base_ = 'fast_rcnn_vgg16_bg0_voc07.py'

# B / N RoIs of each image. No bound on the foreground, or some of it would be left out.
model = dict(train_cfg=dict(rcnn=dict(sampler=dict(num=1024, pos_fraction=1.0))))
optim_wrapper = dict(optimizer=dict(lr=0.003))
