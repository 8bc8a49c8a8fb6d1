# COCO train2014 to test-dev 2015, whose annotations only COCO's evaluation server has:
# testing writes the results JSON of pycocotools, WORK_DIR/test-dev.bbox.json.
_base_ = './coco.py'

from mmdet_ohem.datasets import coco, loaders

globals().update(
    loaders(
        train=coco('train2014'),
        test=coco('test2015', 'annotations/image_info_test-dev2015.json'),
        scale=(1000, 600),
        metric=dict(
            type='CocoMetric',
            ann_file='data/coco/annotations/image_info_test-dev2015.json',
            metric='bbox',
            format_only=True,
            outfile_prefix='test-dev',
        ),
        val=coco('val2014'),
        val_metric=_base_.val_evaluator,
    )
)
