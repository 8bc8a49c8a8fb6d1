# MMDetection's own Mask R-CNN with OHEM. `num` is the paper's B/N; the 512 of the
# random sampler would take nearly every RoI that NMS leaves.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '_base_/ohem.py']

model = _base_.ohem
