# VOC07 trainval and VOC12 trainval to VOC07 test.
_base_ = []  # above the import, or MMEngine takes this for a pure Python config

from mmdet_ohem.datasets import loaders, pascal_voc

data_help = {
    'data/VOCdevkit/': (
        'Download VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from '
        'http://host.robots.ox.ac.uk/pascal/VOC/voc2007, VOCtrainval_11-May-2012.tar '
        'from http://host.robots.ox.ac.uk/pascal/VOC/voc2012, and unpack them in '
        'data/; then make the proposals as docs/experiments.md says.'
    )
}

globals().update(
    loaders(
        train=[pascal_voc(2007, 'trainval'), pascal_voc(2012, 'trainval')],
        test=pascal_voc(2007, 'test'),
        scale=(1000, 600),
        metric=dict(type='VOCMetric', metric='mAP', eval_mode='11points'),
        max_per_img=2000,
    )
)
