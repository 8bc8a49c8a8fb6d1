# OHEM +M, VGG16, COCO train2014 to test-dev 2015: 24.4 AP in the paper.
_base_ = ['fast_rcnn_vgg16_ohem_coco_testdev.py', '_base_/multi_scale.py']

train_pipeline = _base_.train_dataloader.dataset.pipeline
train_pipeline[2] = _base_.resize_to_one
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[:2] = [_base_.resize_to_each, _base_.no_flip]
tta_model = dict(_delete_=True, type='mmdet_ohem.MultiScaleTTAModel', roi_area=224**2)
test_evaluator = dict(outfile_prefix='work_dirs/{{ fileBasenameNoExtension }}/test-dev')
