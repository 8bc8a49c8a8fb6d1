# COCO train2014 and val2014 to test-dev 2015 (see coco_testdev.py); nothing is left for
# validation.
_base_ = []  # above the import, or MMEngine takes this for a pure Python config

from mmdet_ohem.datasets import coco, loaders

data_help = {
    'data/coco/': (
        'Download train2014.zip, val2014.zip, test2015.zip, '
        'annotations_trainval2014.zip and image_info_test2015.zip from '
        'https://cocodataset.org/#download and unpack them in data/coco/; then make '
        'the proposals as docs/experiments.md says.'
    )
}

globals().update(
    loaders(
        train=[coco('train2014'), coco('val2014')],
        test=coco('test2015', 'annotations/image_info_test-dev2015.json'),
        scale=(1000, 600),
        metric=dict(
            type='CocoMetric',
            ann_file='data/coco/annotations/image_info_test-dev2015.json',
            metric='bbox',
            format_only=True,
            outfile_prefix='test-dev',
        ),
        val=None,
    )
)
