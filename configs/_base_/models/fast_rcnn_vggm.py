# Fast R-CNN with VGG_CNN_M_1024: the paper's Table 1, row 1.
_base_ = ['./fast_rcnn_vgg16.py', '../caffe.py']

# Made by tools/convert_caffe.py from VGG_CNN_M_1024.v2.caffemodel of Fast R-CNN's
# ImageNet models; there is no other source. For training from scratch set
# init_cfg=None, twice, and frozen_stages=0: random weights must not stay frozen.
caffe_weights = dict(
    type='mmdet_ohem.ConvertedWeights', checkpoint='checkpoints/vgg_cnn_m_1024.pth'
)

model = dict(
    data_preprocessor=_base_.caffe_preprocessor,
    backbone=dict(
        _delete_=True,
        type='mmdet_ohem.VGGCNNM1024',
        frozen_stages=1,  # conv1
        init_cfg=caffe_weights,
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(output_size=6),
        bbox_head=dict(
            roi_feat_size=6,
            fc_out_channels=(4096, 1024),
            init_cfg=caffe_weights,
        ),
    ),
)
