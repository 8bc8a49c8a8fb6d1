# VOC07 trainval and VOC12 trainval to VOC07 test.
_base_ = './voc07.py'

data_help = (
    'Download VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from '
    'http://host.robots.ox.ac.uk/pascal/VOC/voc2007, VOCtrainval_11-May-2012.tar from '
    'http://host.robots.ox.ac.uk/pascal/VOC/voc2012, and unpack them in data/; then '
    'make the proposals as docs/experiments.md says.'
)

voc12_trainval = dict(
    type='VOCDataset',
    data_root=_base_.data_root,
    data_prefix=dict(sub_data_root='VOC2012/'),
    ann_file='VOC2012/ImageSets/Main/trainval.txt',
    pipeline=[
        *_base_.train_pipeline[:4],
        dict(
            type='mmdet_ohem.LoadStoredProposals',
            store='data/VOCdevkit/selective_search/voc_2012_trainval',
        ),
        dict(type='PackDetInputs'),
    ],
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        # MMDetection notes the year there, and only the years differ.
        ignore_keys=['dataset_type'],
        datasets=[_base_.train_dataloader.dataset, voc12_trainval],
    )
)
