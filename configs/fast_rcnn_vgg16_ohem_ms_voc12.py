# OHEM +M, VGG16, VOC12 trainval to VOC12 test: 72.9 mAP in the paper, with +B.
_base_ = ['fast_rcnn_vgg16_ohem_voc12.py', '_base_/multi_scale.py']

train_pipeline = _base_.train_dataloader.dataset.pipeline
train_pipeline[2] = _base_.resize_to_one
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[:2] = [_base_.resize_to_each, _base_.no_flip]
tta_model = dict(_delete_=True, type='mmdet_ohem.MultiScaleTTAModel', roi_area=224**2)
test_evaluator = dict(out_dir='work_dirs/{{ fileBasenameNoExtension }}')
