# COCO train2014 and val2014 to test-dev 2015; nothing is left for validation.
_base_ = './coco_testdev.py'

val2014 = dict(
    type='CocoDataset',
    data_root=_base_.data_root,
    ann_file='annotations/instances_val2014.json',
    data_prefix=dict(img='val2014/'),
    pipeline=[
        *_base_.train_pipeline[:4],
        dict(type='mmdet_ohem.LoadStoredProposals', store='data/coco/mcg/val2014'),
        dict(type='PackDetInputs'),
    ],
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[_base_.train_dataloader.dataset, val2014],
    )
)
val_dataloader = None
val_evaluator = None
