# The paper's Table 1, row 12: OHEM, VGGM, N = 2, B = 128: 62.0 mAP,
# from the ImageNet weights, which exist as a Caffe model only (tools/convert_caffe.py).
_base_ = 'fast_rcnn_vggm_voc07.py'

model = dict(
    train_cfg=dict(
        rcnn=dict(
            # No lower bound for background: hard background may lie anywhere.
            assigner=dict(neg_iou_thr=0.5),
            sampler=dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=64),
        )
    )
)
