# VOC07 trainval to VOC07 test as in Fast R-CNN: no image or box is filtered by size,
# none is repeated, images are not grouped by shape.
_base_ = []  # above the import, or MMEngine takes this for a pure Python config

from mmdet_ohem.datasets import loaders, pascal_voc

data_help = {
    'data/VOCdevkit/': (
        'Download VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from '
        'http://host.robots.ox.ac.uk/pascal/VOC/voc2007 and unpack both in data/; then '
        'make the proposals as the README says.'
    )
}

globals().update(
    loaders(
        train=pascal_voc(2007, 'trainval'),
        test=pascal_voc(2007, 'test'),
        scale=(1000, 600),  # shorter side 600, longer at most 1000
        metric=dict(type='VOCMetric', metric='mAP', eval_mode='11points'),
        max_per_img=2000,
    )
)
