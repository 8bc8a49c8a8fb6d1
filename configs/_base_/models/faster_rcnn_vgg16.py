# Faster R-CNN with VGG16: Fast R-CNN and the RPN that proposes its boxes.
_base_ = ['./fast_rcnn_vgg16.py', './vgg_rpn.py']

model = dict(
    type='FasterRCNN',
    rpn_head=_base_.rpn_head,
    train_cfg=_base_.rpn_train_cfg,
    test_cfg=_base_.rpn_test_cfg,
)
