# Fast R-CNN with VGG16 for COCO.
_base_ = './fast_rcnn_vgg16.py'

model = dict(
    roi_head=dict(bbox_head=dict(num_classes=80)),
    # RoIs that lie in a crowd by more take no part (crowd_thresh in the COCO loader of
    # Fast R-CNN): the objects there are not annotated one by one.
    train_cfg=dict(rcnn=dict(assigner=dict(ignore_iof_thr=0.7))),
    test_cfg=dict(rcnn=dict(max_per_img=100)),  # more than COCO counts
)
