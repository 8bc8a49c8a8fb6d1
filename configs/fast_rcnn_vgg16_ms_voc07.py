# Fast R-CNN with +M, the paper's multi-scale training and testing: 67.7 mAP trained on
# five scales, 71.2 tested on them too (--tta), 72.4 with iterative boxes.
_base_ = ['fast_rcnn_vgg16_voc07.py', '_base_/multi_scale.py']

train_pipeline = _base_.train_pipeline
train_pipeline[2] = _base_.resize_to_one
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[:2] = [_base_.resize_to_each, _base_.no_flip]
tta_model = dict(_delete_=True, type='mmdet_ohem.MultiScaleTTAModel', roi_area=224**2)
