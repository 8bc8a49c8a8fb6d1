import warnings

import pytest
from mmengine.config import Config

from mmdet_ohem.runs import check_score_thr

MAP = dict(type='VOCMetric')
FROC = dict(type='mmdet_ohem.FROCMetric')
RCNN = dict(rpn=dict(nms_pre=1000), rcnn=dict(score_thr=0.05))


@pytest.mark.parametrize(
    'test_cfg, words',
    [
        (RCNN, r'^model\.test_cfg\.rcnn\.score_thr is 0\.05, which cuts the curve'),
        (dict(score_thr=0.01), r'^model\.test_cfg\.score_thr is 0\.01, which'),
    ],
)
@pytest.mark.parametrize('evaluator', [FROC, [MAP, FROC]])
def test_a_threshold_that_cuts_the_curve_is_named_once(test_cfg, words, evaluator):
    cfg = Config(dict(model=dict(test_cfg=test_cfg), test_evaluator=evaluator))
    with pytest.warns(UserWarning, match=words) as caught:
        check_score_thr(cfg, ('test',))
    assert len(caught) == 1


def test_test_time_augmentation_hides_no_threshold():
    model = dict(type='DetTTAModel', module=dict(test_cfg=RCNN))
    with pytest.warns(UserWarning, match='score_thr is 0.05'):
        check_score_thr(Config(dict(model=model, test_evaluator=FROC)), ('test',))


def test_background_is_measured_too():
    cfg = Config(dict(model=dict(test_cfg=RCNN), test_evaluator=MAP))
    cfg.background_dataloader = dict(batch_size=1)
    with pytest.warns(UserWarning, match='score_thr is 0.05'):
        check_score_thr(cfg, ('test',))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_score_thr(cfg, ('val',))  # a training tests nothing


@pytest.mark.parametrize(
    'test_cfg, evaluator',
    [
        (RCNN, [MAP]),
        (RCNN, None),
        (dict(rcnn=dict(score_thr=0.001)), FROC),
        (dict(nms_pre=1000), FROC),
        (None, FROC),
    ],
)
def test_what_cuts_nothing_is_not_named(test_cfg, evaluator):
    cfg = Config(dict(model=dict(test_cfg=test_cfg), test_evaluator=evaluator))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_score_thr(cfg, ('val', 'test'))
