# The authors' solver for R-FCN on 07+12: 110k iterations of two images, lr times 0.1 at
# 80k (models/pascal_voc/ResNet-101/rfcn_end2end/solver_ohem.prototxt of py-R-FCN, whose
# iter_size is 2, and solver_80k110k_lr1_3 of the MATLAB version). The paper has 20k
# iterations of eight images and 10k at a tenth of the rate, about as many images.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=110000, val_interval=110000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, milestones=[80000], gamma=0.1)
]

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=0.0005),
    paramwise_cfg=dict(bias_lr_mult=2),
)

# lr 0.001 belongs to two images per step (1 GPU x 2 images).
auto_scale_lr = dict(enable=False, base_batch_size=2)
