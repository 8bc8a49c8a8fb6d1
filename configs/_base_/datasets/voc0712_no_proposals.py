# VOC07 trainval and VOC12 trainval to VOC07 test for detectors that propose boxes
# themselves.
_base_ = './voc0712.py'

from mmdet_ohem.datasets import loaders, pascal_voc

globals().update(
    loaders(
        train=[
            dict(pascal_voc(2007, 'trainval'), proposals=None),
            dict(pascal_voc(2012, 'trainval'), proposals=None),
        ],
        test=dict(pascal_voc(2007, 'test'), proposals=None),
        scale=(1000, 600),
        metric=_base_.test_evaluator,
    )
)
