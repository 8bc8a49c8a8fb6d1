# What turns an R-FCN into its OHEM version: `model = _base_.ohem`. 128 of the 300 RoIs
# of an image are mined, and there is no NMS by loss: the RoIs come from the NMS of the
# RPN, and R-FCN takes the hardest as they are (section 2 of the paper;
# box_annotator_ohem_layer.cpp).
_base_ = './ohem.py'

ohem = dict(train_cfg=dict(rcnn=dict(sampler=dict(num=128, nms_iou=None))))
