# BCCD for detectors that propose boxes themselves.
_base_ = './bccd.py'

from mmdet_ohem.datasets import loaders, voc_layout

globals().update(
    loaders(
        train=voc_layout(
            _base_.data_root,
            _base_.train_list,
            classes=_base_.classes,
            filter_cfg=dict(filter_empty_gt=False, bbox_min_size=1),
        ),
        test=voc_layout(_base_.data_root, _base_.test_list, classes=_base_.classes),
        scale=_base_.scale,
        metric=_base_.test_evaluator,
    )
)
