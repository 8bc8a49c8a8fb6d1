# VOC07 trainval to VOC07 test as in Fast R-CNN: no image or box is filtered by size,
# none is repeated, images are not grouped by shape.
data_root = 'data/VOCdevkit/'
train_proposals = 'data/VOCdevkit/selective_search/voc_2007_trainval'
test_proposals = 'data/VOCdevkit/selective_search/voc_2007_test'
# Shorter side 600, longer at most 1000.
scale = (1000, 600)
data_help = (
    'Download VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from '
    'http://host.robots.ox.ac.uk/pascal/VOC/voc2007 and unpack both in data/; then '
    'make the proposals as the README says.'
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdet_ohem.LoadStoredProposals', store=train_proposals),
    dict(type='PackDetInputs'),
]
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='mmdet_ohem.LoadStoredProposals', store=test_proposals),
    # After the resize: ground truth is evaluated in the image's own coordinates.
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]

train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='VOCDataset',
        data_root=data_root,
        data_prefix=dict(sub_data_root='VOC2007/'),
        ann_file='VOC2007/ImageSets/Main/trainval.txt',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='VOCDataset',
        data_root=data_root,
        data_prefix=dict(sub_data_root='VOC2007/'),
        ann_file='VOC2007/ImageSets/Main/test.txt',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='VOCMetric', metric='mAP', eval_mode='11points')
test_evaluator = val_evaluator

# Both directions of each test image; proposals are read after the flip.
tta_model = dict(
    type='DetTTAModel',
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.3), max_per_img=100),
)
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=scale, keep_ratio=True)],
            [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
            [dict(type='mmdet_ohem.LoadStoredProposals', store=test_proposals)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(*meta_keys, 'flip', 'flip_direction'),
                )
            ],
        ],
    ),
]
