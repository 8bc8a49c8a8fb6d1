# The authors' solver for VOC07 trainval: 40k iterations of two images, lr times 0.1 at
# 30k (models/pascal_voc/VGG16/fast_rcnn/ohem/solver.prototxt). Caffe's iter_size 2 is
# accumulation: one of its iterations is one of MMEngine's with batch_size=2.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=40000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, milestones=[30000], gamma=0.1)
]

# A key that matches leaves bias_lr_mult out, so it repeats the factor of two.
fc_bias = dict(lr_mult=2, decay_mult=0)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=0.0005),
    paramwise_cfg=dict(
        bias_lr_mult=2,
        custom_keys={
            'bbox_head.fc6.bias': fc_bias,
            'bbox_head.fc7.bias': fc_bias,
            'bbox_head.fc_cls.bias': fc_bias,
            'bbox_head.fc_reg.bias': fc_bias,
        },
    ),
)

# lr 0.001 belongs to two images per step (1 GPU x 2 images).
auto_scale_lr = dict(enable=False, base_batch_size=2)
