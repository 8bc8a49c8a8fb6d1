# 07++12: VOC07 trainval, VOC07 test and VOC12 trainval to VOC12 test.
_base_ = './voc12.py'

data_help = (
    'Download VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from '
    'http://host.robots.ox.ac.uk/pascal/VOC/voc2007, VOCtrainval_11-May-2012.tar from '
    'http://host.robots.ox.ac.uk/pascal/VOC/voc2012 and VOC2012test.tar from '
    'http://host.robots.ox.ac.uk:8080 (after registration), and unpack them in data/; '
    'then make the proposals as docs/experiments.md says.'
)

voc07_datasets = [
    dict(
        type='VOCDataset',
        data_root=_base_.data_root,
        data_prefix=dict(sub_data_root='VOC2007/'),
        ann_file=f'VOC2007/ImageSets/Main/{split}.txt',
        pipeline=[
            *_base_.train_pipeline[:4],
            dict(
                type='mmdet_ohem.LoadStoredProposals',
                store=f'data/VOCdevkit/selective_search/voc_2007_{split}',
            ),
            dict(type='PackDetInputs'),
        ],
    )
    for split in ('trainval', 'test')
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        # MMDetection notes the year there, and only the years differ.
        ignore_keys=['dataset_type'],
        datasets=[*voc07_datasets, _base_.voc12_trainval],
    )
)
