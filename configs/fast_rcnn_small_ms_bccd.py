# Multi-scale training and testing, the paper's +M, at half its sizes: the one scale of
# fast_rcnn_small_bccd.py, (400, 300), is half of the usual 800 x 600 pixels.
_base_ = 'fast_rcnn_small_bccd.py'

scales = [(500, 240), (500, 288), (500, 344), (500, 432), (500, 450)]

train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

# With tools/test.py --tta. Half of 224 each way.
tta_model = dict(_delete_=True, type='mmdet_ohem.MultiScaleTTAModel', roi_area=112**2)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=scale, keep_ratio=True) for scale in scales
]
tta_pipeline[1].transforms[1] = [dict(type='RandomFlip', prob=0.0)]  # no flip
