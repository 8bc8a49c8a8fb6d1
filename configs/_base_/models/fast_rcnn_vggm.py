# Fast R-CNN with VGG_CNN_M_1024: the paper's Table 1, row 1.
_base_ = './fast_rcnn_vgg16.py'

# This network's ImageNet weights exist only as a Caffe model, which the project
# cannot convert yet: it starts from random weights, but from Caffe's input.
model = dict(
    data_preprocessor=_base_.caffe_preprocessor,
    backbone=dict(
        _delete_=True,
        type='mmdet_ohem.VGGCNNM1024',
        # The recipe freezes conv1. Set 1 once ImageNet weights are loaded: random
        # weights must not stay frozen.
        frozen_stages=0,
        init_cfg=None,
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(output_size=6),
        bbox_head=dict(roi_feat_size=6, fc_out_channels=(4096, 1024), init_cfg=None),
    ),
)
