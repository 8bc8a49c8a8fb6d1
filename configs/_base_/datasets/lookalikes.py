# The demo's data set, made by tools/make_lookalikes.py.
_base_ = []  # above the import, or MMEngine takes this for a pure Python config

from mmdet_ohem.datasets import loaders, voc_layout

classes = ('washer', 'nut', 'gear')
data_root = 'data/lookalikes/'
train_list = 'train'
test_list = 'test'
proposals = 'data/lookalikes/proposals'
scale = (400, 300)
data_help = {
    'data/lookalikes/': (
        'Make it with: python tools/make_lookalikes.py data/lookalikes && python '
        'tools/prepare_proposals.py selective-search --images '
        'data/lookalikes/JPEGImages --out data/lookalikes/proposals'
    )
}

globals().update(
    loaders(
        train=voc_layout(data_root, train_list, proposals, classes),
        test=voc_layout(data_root, test_list, proposals, classes),
        scale=scale,
        metric=dict(type='VOCMetric', metric='mAP', eval_mode='area'),
    )
)
