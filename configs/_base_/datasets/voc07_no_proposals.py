# VOC07 trainval to VOC07 test for detectors that propose boxes themselves.
_base_ = './voc07.py'

from mmdet_ohem.datasets import loaders, pascal_voc

globals().update(
    loaders(
        train=dict(pascal_voc(2007, 'trainval'), proposals=None),
        test=dict(pascal_voc(2007, 'test'), proposals=None),
        scale=(1000, 600),
        metric=_base_.test_evaluator,
        max_per_img=2000,
    )
)
