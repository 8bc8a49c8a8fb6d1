# The paper's Table 1, row 8: all RoIs, VGGM, N = 2, B = 2048, lr 0.004: 60.4 mAP.
_base_ = 'fast_rcnn_vggm_bg0_voc07.py'

# B / N RoIs of each image. No bound on the foreground, or some of it would be left out.
model = dict(train_cfg=dict(rcnn=dict(sampler=dict(num=1024, pos_fraction=1.0))))
optim_wrapper = dict(optimizer=dict(lr=0.004))
