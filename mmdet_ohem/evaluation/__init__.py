"""What a test computes or writes beyond MMDetection's metrics: false positives against
the objects found, and the files that VOC's evaluation server takes."""

from mmdet_ohem.evaluation.froc import Judged, froc_curve, judge
from mmdet_ohem.evaluation.froc_metric import BackgroundMetric, FROCMetric
from mmdet_ohem.evaluation.voc_server import VOCImages, VOCServerFiles

__all__ = [
    'BackgroundMetric',
    'FROCMetric',
    'Judged',
    'VOCImages',
    'VOCServerFiles',
    'froc_curve',
    'judge',
]
