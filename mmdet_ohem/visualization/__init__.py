"""Pictures of RoIs and detections, and curves of trainings and of detectors."""

from mmdet_ohem.visualization.curves import (
    LOSS_ALL_ROIS,
    draw_curves,
    plot_curves,
    plot_froc,
    read_curve,
    read_log,
    save_figure,
)
from mmdet_ohem.visualization.pictures import (
    BACKGROUND,
    DETECTIONS_LEGEND,
    GROUND_TRUTH,
    MINED_LEGEND,
    corners_of,
    detected_boxes,
    draw_boxes,
    draw_detections,
    draw_mined,
    draw_ranking,
    montage,
    titled,
    with_legend,
)

__all__ = [
    'BACKGROUND',
    'DETECTIONS_LEGEND',
    'GROUND_TRUTH',
    'LOSS_ALL_ROIS',
    'MINED_LEGEND',
    'corners_of',
    'detected_boxes',
    'draw_boxes',
    'draw_curves',
    'draw_detections',
    'draw_mined',
    'draw_ranking',
    'montage',
    'plot_curves',
    'plot_froc',
    'read_curve',
    'read_log',
    'save_figure',
    'titled',
    'with_legend',
]
