# Faster R-CNN, VGG_CNN_M_1024, trained end to end with OHEM. The paper has Fast R-CNN
# only: the RPN and the schedule are py-faster-rcnn's, OHEM is that of
# fast_rcnn_vggm_ohem_voc07.py.
_base_ = [
    '_base_/models/faster_rcnn_vggm.py',
    '_base_/datasets/voc07_no_proposals.py',
    '_base_/schedules/voc07_70k.py',
    '_base_/default_runtime.py',
    '_base_/ohem.py',
]

model = _base_.ohem
