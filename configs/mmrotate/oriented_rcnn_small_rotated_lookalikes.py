# MMRotate's Oriented R-CNN, small enough to train from scratch on a CPU, on the rotated
# look-alikes of tools/make_lookalikes.py --rotated. Random sampling is what OHEM is
# held against.
_base_ = 'mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py'

from mmdet_ohem.datasets import with_step

classes = ('bar', 'link', 'spindle')
data_root = 'data/rotated_lookalikes/'
scale = (320, 240)
data_help = (
    'Make it with: python tools/make_lookalikes.py data/rotated_lookalikes --rotated'
)


train_dataloader = with_step(_base_.train_dataloader, 'Resize', scale=scale)
val_dataloader = with_step(_base_.val_dataloader, 'Resize', scale=scale)
test_dataloader = with_step(_base_.val_dataloader, 'Resize', scale=scale)
for loader, split in (
    (train_dataloader, 'train'),
    (val_dataloader, 'val'),
    (test_dataloader, 'test'),
):
    loader.dataset.update(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file=f'{split}/annfiles/',
        data_prefix=dict(img_path=f'{split}/images/'),
    )
train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
del loader, split

channels = 64
model = dict(
    backbone=dict(
        depth=18,
        base_channels=16,
        frozen_stages=-1,
        norm_cfg=dict(type='GN', num_groups=8, requires_grad=True),
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(
        in_channels=[16, 32, 64, 128], out_channels=channels, start_level=1, num_outs=4
    ),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4], strides=[8, 16, 32, 64]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(out_size=5, sample_num=1),
            out_channels=channels,
            featmap_strides=[8, 16, 32],
        ),
        bbox_head=dict(
            in_channels=channels,
            fc_out_channels=128,
            roi_feat_size=5,
            num_classes=len(classes),
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=200), rcnn=dict(max_per_img=100)),
)

train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=2400, val_interval=2400
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=False, milestones=[1800], gamma=0.1),
]
optim_wrapper = dict(optimizer=dict(lr=0.04, weight_decay=0.0005))
val_evaluator = dict(eval_mode='area')
test_evaluator = val_evaluator

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1200))
custom_hooks = [
    dict(type='mmdet_ohem.SeedEachIterationHook'),
    dict(type='mmdet_ohem.MiningHook'),
]
randomness = dict(seed=0)
log_processor = dict(by_epoch=False)
