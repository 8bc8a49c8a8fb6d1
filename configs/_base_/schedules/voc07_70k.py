# py-faster-rcnn's solver for training end to end on VOC07 trainval: 70k iterations of
# two images, lr times 0.1 at 50k (models/pascal_voc/VGG16/faster_rcnn_end2end, whose
# iter_size is 2). Biases of the RPN's convolutions have twice the rate as well.
_base_ = './voc07_40k.py'

train_cfg = dict(max_iters=70000, val_interval=70000)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, milestones=[50000], gamma=0.1)
]
