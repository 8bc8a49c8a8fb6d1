# COCO train2014 to val2014, the splits of the paper's time (train2017 is train2014 and
# most of val2014). Images come in as on VOC07; proposals are MCG's 2000 best. As in the
# release no image is left out, not even one without an object.
_base_ = './coco_help.py'

from mmdet_ohem.datasets import coco, loaders

globals().update(
    loaders(
        train=coco('train2014'),
        test=coco('val2014'),
        scale=(1000, 600),
        metric=dict(
            type='CocoMetric',
            ann_file='data/coco/annotations/instances_val2014.json',
            metric='bbox',
        ),
    )
)
