"""The paper's networks: VGG16 and VGG_CNN_M_1024 with their head and weights, Caffe's
RoI pooling, the two refinements at test time, +M (several scales) and +B (iterative
boxes and box voting), R-FCN's RoI head, and RetinaNet's focal loss for a RoI head."""

from mmdet_ohem.models.box_voting import IterativeBoxRoIHead, vote_boxes
from mmdet_ohem.models.focal_loss import RetinaFocalLoss
from mmdet_ohem.models.multi_scale import MultiScaleTTAModel
from mmdet_ohem.models.pretrained import (
    ConvertedWeights,
    TorchvisionVGG16,
    read_checkpoint,
)
from mmdet_ohem.models.rfcn import (
    PSRoIAlignExtractor,
    RFCNBBoxHead,
    RFCNRoIHead,
    ps_roi_align,
)
from mmdet_ohem.models.roi_pool import RoIPoolExtractor, caffe_roi_pool
from mmdet_ohem.models.vgg import (
    VGG16,
    VGGCNNM1024,
    ClasswiseVGGBBoxHead,
    VGGBBoxHead,
)

__all__ = [
    'ClasswiseVGGBBoxHead',
    'ConvertedWeights',
    'IterativeBoxRoIHead',
    'MultiScaleTTAModel',
    'PSRoIAlignExtractor',
    'RFCNBBoxHead',
    'RFCNRoIHead',
    'RetinaFocalLoss',
    'RoIPoolExtractor',
    'TorchvisionVGG16',
    'VGG16',
    'VGGBBoxHead',
    'VGGCNNM1024',
    'caffe_roi_pool',
    'ps_roi_align',
    'read_checkpoint',
    'vote_boxes',
]
