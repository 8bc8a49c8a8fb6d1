# VOC07 trainval to VOC07 test for detectors that propose boxes themselves.
_base_ = './voc07.py'

proposal_step = 'mmdet_ohem.LoadStoredProposals'
train_pipeline = [step for step in _base_.train_pipeline if step.type != proposal_step]
test_pipeline = [step for step in _base_.test_pipeline if step.type != proposal_step]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms = [
    steps for steps in tta_pipeline[1].transforms if steps[0].type != proposal_step
]
