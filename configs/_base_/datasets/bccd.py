# BCCD, a data set in VOC layout. For one of your own copy this file and edit the values
# at its top.
_base_ = []  # above the import, or MMEngine takes this for a pure Python config

from mmdet_ohem.datasets import loaders, voc_layout

# The names in Annotations/*.xml.
classes = ('RBC', 'WBC', 'Platelets')
# The folder with Annotations/, ImageSets/Main/ and JPEGImages/ (*.jpg). Keep the words
# VOC2007 and VOC2012 out of its name: MMDetection prints VOC's own classes for those.
data_root = 'data/bccd/'
# The lists of images, ImageSets/Main/*.txt.
train_list = 'trainval'
test_list = 'test'
# Made by: python tools/prepare_proposals.py selective-search \
#     --images data/bccd/JPEGImages --out data/bccd/proposals
proposals = 'data/bccd/proposals'
# Images are resized to fit into this, in px: the longer side, the shorter side.
scale = (400, 300)
# Said when a file of this folder is missing.
data_help = {
    'data/bccd/': (
        'BCCD is public: https://github.com/Shenggan/BCCD_Dataset; put its folder BCCD '
        'at data/bccd.'
    )
}

globals().update(
    loaders(
        train=voc_layout(
            data_root,
            train_list,
            proposals,
            classes,
            # Boxes without area have no box targets; BCCD has two.
            filter_cfg=dict(filter_empty_gt=False, bbox_min_size=1),
        ),
        test=voc_layout(data_root, test_list, proposals, classes),
        scale=scale,
        metric=dict(type='VOCMetric', metric='mAP', eval_mode='area'),
    )
)
