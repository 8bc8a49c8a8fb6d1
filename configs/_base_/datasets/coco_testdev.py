# COCO train2014 to test-dev 2015, whose annotations only COCO's evaluation server has:
# testing writes the results JSON of pycocotools. A config says where, as
# test_evaluator.outfile_prefix.
_base_ = './coco.py'

test_proposals = 'data/coco/mcg/test2015'
testdev_list = 'annotations/image_info_test-dev2015.json'
test_pipeline = _base_.test_pipeline
test_pipeline[2].store = test_proposals
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[2][0].store = test_proposals
test_dataloader = dict(
    dataset=dict(
        ann_file=testdev_list,
        data_prefix=dict(img='test2015/'),
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(ann_file=_base_.data_root + testdev_list, format_only=True)
