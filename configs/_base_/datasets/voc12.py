# VOC12 trainval to VOC12 test, whose annotations only VOC's evaluation server has:
# there is no validation, and testing writes the files that the server takes. A config
# says where, as test_evaluator.out_dir.
_base_ = './voc0712.py'

data_help = (
    'Download VOCtrainval_11-May-2012.tar from '
    'http://host.robots.ox.ac.uk/pascal/VOC/voc2012 and VOC2012test.tar from '
    'http://host.robots.ox.ac.uk:8080 (after registration), and unpack them in data/; '
    'then make the proposals as docs/experiments.md says.'
)

train_dataloader = dict(dataset=dict(_delete_=True, **_base_.voc12_trainval))

test_proposals = 'data/VOCdevkit/selective_search/voc_2012_test'
test_pipeline = _base_.test_pipeline
test_pipeline[2].store = test_proposals
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[2][0].store = test_proposals
test_dataloader = dict(
    dataset=dict(
        type='mmdet_ohem.VOCImages',
        data_prefix=dict(sub_data_root='VOC2012/'),
        ann_file='VOC2012/ImageSets/Main/test.txt',
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(_delete_=True, type='mmdet_ohem.VOCServerFiles')
val_dataloader = None
val_evaluator = None
