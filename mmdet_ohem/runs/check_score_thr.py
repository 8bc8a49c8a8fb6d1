"""A score threshold that cuts the curves of a metric, said before a run."""

import warnings

from mmengine.config import Config

from mmdet_ohem.config import dicts_of, type_name

# As MMDetection tests RTMDet. LUNA16 takes every detection.
HIGHEST = 0.001


def check_score_thr(cfg: Config, loops: tuple[str, ...]) -> None:
    """Warn if false positives are measured but detections are left out by their score.

    Args:
        cfg: of a two-stage detector or a one-stage one.
        loops: of 'val' and 'test'.
    """
    metrics = [
        type_name(metric)
        for loop in loops
        for metric in dicts_of(cfg.get(f'{loop}_evaluator'))
    ]
    model = cfg.get('model') or {}
    # Test-time augmentation wraps the detector.
    test_cfg = model.get('module', model).get('test_cfg') or {}
    rcnn = test_cfg.get('rcnn')
    place = 'model.test_cfg.rcnn' if rcnn else 'model.test_cfg'
    score_thr = (rcnn or test_cfg).get('score_thr', 0)
    has_background = 'test' in loops and cfg.get('background_dataloader')
    if ('FROCMetric' in metrics or has_background) and score_thr > HIGHEST:
        warnings.warn(
            f'{place}.score_thr is {score_thr}, which cuts the curve of FROCMetric: '
            'detections below it are neither hits nor false positives. Set it to '
            f'{HIGHEST} to measure them.',
            stacklevel=2,
        )
