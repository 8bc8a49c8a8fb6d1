"""The scope `mmdet_ohem`: children of MMDetection's registries.

MMEngine imports `mmdet_ohem.registry` by itself when a config says
`type='mmdet_ohem.Name'`, and each registry below imports the modules in its
`locations` when it is first asked for a name. So no config of a user needs
`custom_imports`, and nothing of MMDetection's is overwritten.
"""

from mmdet.registry import DATASETS as MMDET_DATASETS
from mmdet.registry import HOOKS as MMDET_HOOKS
from mmdet.registry import METRICS as MMDET_METRICS
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.registry import TASK_UTILS as MMDET_TASK_UTILS
from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

DATASETS = Registry(
    'dataset',
    parent=MMDET_DATASETS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.voc_server'],
)
HOOKS = Registry(
    'hook',
    parent=MMDET_HOOKS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.seed_hook', 'mmdet_ohem.mining_hook'],
)
METRICS = Registry(
    'metric',
    parent=MMDET_METRICS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.voc_server'],
)
MODELS = Registry(
    'model',
    parent=MMDET_MODELS,
    scope='mmdet_ohem',
    locations=[
        'mmdet_ohem.vgg',
        'mmdet_ohem.vgg_bbox_head',
        'mmdet_ohem.roi_pool',
        'mmdet_ohem.iterative_boxes',
        'mmdet_ohem.multi_scale',
        'mmdet_ohem.ohem_loss',
    ],
)
TASK_UTILS = Registry(
    'task util',
    parent=MMDET_TASK_UTILS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.ohem_sampler'],
)
TRANSFORMS = Registry(
    'transform',
    parent=MMDET_TRANSFORMS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.proposals'],
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer',
    parent=MMENGINE_WEIGHT_INITIALIZERS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.vgg_weights'],
)
