# The demo's data set, made by tools/make_lookalikes.py: in all else as BCCD.
_base_ = './bccd.py'

classes = ('washer', 'nut', 'gear')
data_root = 'data/lookalikes/'
proposals = data_root + 'proposals'
data_help = (
    'Make it with: python tools/make_lookalikes.py data/lookalikes && python '
    'tools/prepare_proposals.py selective-search --images data/lookalikes/JPEGImages '
    '--out data/lookalikes/proposals'
)

train_pipeline = _base_.train_pipeline
train_pipeline[4].store = proposals
test_pipeline = _base_.test_pipeline
test_pipeline[2].store = proposals
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[2][0].store = proposals

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='VOCDataset',
        metainfo=dict(classes=classes),
        data_root=data_root,
        data_prefix=dict(sub_data_root=''),
        ann_file='ImageSets/Main/train.txt',
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        metainfo=dict(classes=classes), data_root=data_root, pipeline=test_pipeline
    )
)
test_dataloader = val_dataloader
