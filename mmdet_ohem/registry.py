"""The scope `mmdet_ohem`: children of MMDetection's registries, or of MMEngine's.

MMEngine imports `mmdet_ohem.registry` by itself when a config says
`type='mmdet_ohem.Name'`, and each registry below imports the rooms in its
`locations` when it is first asked for a name. So no config of a user needs
`custom_imports`, and nothing of MMDetection's is overwritten.

A name of a child of MMEngine's registry is found from every scope, MMRotate's too; a
child of MMDetection's finds MMDetection's names without their scope.
"""

from mmdet.registry import DATASETS as MMDET_DATASETS
from mmdet.registry import METRICS as MMDET_METRICS
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

DATASETS = Registry(
    'dataset',
    parent=MMDET_DATASETS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.datasets', 'mmdet_ohem.evaluation'],
)
FUNCTIONS = Registry(
    'function',
    parent=MMENGINE_FUNCTIONS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.hooks'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.hooks'],
)
METRICS = Registry(
    'metric',
    parent=MMDET_METRICS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.evaluation'],
)
MODELS = Registry(
    'model',
    parent=MMDET_MODELS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.models', 'mmdet_ohem.mining'],
)
TASK_UTILS = Registry(
    'task util',
    parent=MMENGINE_TASK_UTILS,
    scope='mmdet_ohem',
    locations=['mmdet_ohem.mining'],
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
    locations=['mmdet_ohem.models'],
)
