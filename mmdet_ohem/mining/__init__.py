"""Online hard example mining, the paper's own part.

`select_hard_rois` is the algorithm, tensors in and indices out. OHEMSampler brings it
to the RoI heads of MMDetection, OHEMLoss to one-stage detectors and classifiers.
"""

from mmdet_ohem.mining.box_iou import box_iou
from mmdet_ohem.mining.candidates import Candidates, boxes_like, find_candidates
from mmdet_ohem.mining.fast_pass import each_roi_alone
from mmdet_ohem.mining.ohem_loss import AllLevelsRetinaHead, OHEMLoss, hardest
from mmdet_ohem.mining.ohem_sampler import Mining, OHEMSampler, why_unfit
from mmdet_ohem.mining.roi_losses import candidate_losses
from mmdet_ohem.mining.select import select_hard_rois
from mmdet_ohem.mining.watch import samplers_of, watched

__all__ = [
    'AllLevelsRetinaHead',
    'Candidates',
    'Mining',
    'OHEMLoss',
    'OHEMSampler',
    'box_iou',
    'boxes_like',
    'candidate_losses',
    'each_roi_alone',
    'find_candidates',
    'hardest',
    'samplers_of',
    'select_hard_rois',
    'watched',
    'why_unfit',
]
