# Faster R-CNN, VGG_CNN_M_1024, trained end to end with OHEM. The paper has Fast R-CNN
# only: the RPN and the schedule are py-faster-rcnn's, OHEM is that of
# fast_rcnn_vggm_ohem_voc07.py.
_base_ = [
    '_base_/models/faster_rcnn_vggm.py',
    '_base_/datasets/voc07_no_proposals.py',
    '_base_/schedules/voc07_70k.py',
    '_base_/default_runtime.py',
]

model = dict(
    train_cfg=dict(
        rcnn=dict(
            # No lower bound for background: hard background may lie anywhere.
            assigner=dict(neg_iou_thr=0.5),
            sampler=dict(_delete_=True, type='mmdet_ohem.OHEMSampler', num=64),
        )
    )
)
