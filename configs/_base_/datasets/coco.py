# COCO train2014 to val2014, the splits of the paper's time (train2017 is train2014 and
# most of val2014). Images come in as on VOC07; proposals are MCG's 2000 best. As in the
# release no image is left out, not even one without an object.
_base_ = './voc07.py'

data_root = 'data/coco/'
train_proposals = data_root + 'mcg/train2014'
test_proposals = data_root + 'mcg/val2014'
data_help = (
    'Download train2014.zip, val2014.zip, test2015.zip, '
    'annotations_trainval2014.zip and image_info_test2015.zip from '
    'https://cocodataset.org/#download and unpack them in data/coco/; then make the '
    'proposals as docs/experiments.md says.'
)

train_pipeline = _base_.train_pipeline
train_pipeline[4].store = train_proposals
test_pipeline = _base_.test_pipeline
test_pipeline[2].store = test_proposals
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[2][0].store = test_proposals

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CocoDataset',
        data_root=data_root,
        ann_file='annotations/instances_train2014.json',
        data_prefix=dict(img='train2014/'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CocoDataset',
        data_root=data_root,
        ann_file='annotations/instances_val2014.json',
        data_prefix=dict(img='val2014/'),
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val2014.json',
    metric='bbox',
)
test_evaluator = val_evaluator
