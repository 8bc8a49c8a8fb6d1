# COCO train2014 and val2014 to test-dev 2015 (see coco_testdev.py); nothing is left for
# validation.
_base_ = './coco_help.py'

from mmdet_ohem.datasets import coco, loaders

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
