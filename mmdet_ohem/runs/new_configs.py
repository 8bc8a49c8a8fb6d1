"""The text of configs for a data set of one's own: a pair, random sampling and OHEM."""

import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.hub import get_config

from mmdet_ohem.config import as_list, dicts_of, rcnn_stages, type_name
from mmdet_ohem.datasets import STORE_STEP, Choice
from mmdet_ohem.mining import why_unfit

BASES = ('models/fast_rcnn_small', 'schedules/small_1200', 'default_runtime')


@dataclass
class DataSet:
    """What configs say of a data set.

    Args:
        name: part of file names.
        made_by: the command line that sets it up.
        classes: names.
        train, test: of `dataset_config`.
        proposals: their store.
        prepare: the command line that makes the store.
    """

    name: str
    made_by: str
    classes: list[str]
    train: dict
    test: dict
    proposals: str
    prepare: str

    def metric(self, with_masks: bool = False) -> dict:
        if self.test['type'] == 'VOCDataset':
            return dict(type='VOCMetric', metric='mAP', eval_mode='area')
        return dict(
            type='CocoMetric',
            ann_file=self.test['ann_file'],
            metric=['bbox', 'segm'] if with_masks else 'bbox',
        )


def small_configs(
    data: DataSet, scale: Choice, num: Choice, min_size: Choice
) -> dict[str, str]:
    """The data file and a pair of configs of the small network, by file name.

    Args:
        scale, num, min_size: of `choose_scale` and the like.
    """
    bases = [f"__import__('mmdet_ohem').config_file('_base_/{b}.py')" for b in BASES]
    bases.insert(1, "'data_set.py'")
    random = f'fast_rcnn_small_{data.name}'
    return {
        'data_set.py': _data_file(data, scale, num, min_size),
        f'{random}.py': f"""# Random sampling, of background near objects: Fast R-CNN.
_base_ = [
    {f',{chr(10)}    '.join(bases)},
]

model = dict(
    roi_head=dict(bbox_head=dict(num_classes=len(_base_.classes))),
    train_cfg=dict(rcnn=dict(sampler=dict(num=_base_.num))),
)
# All are kept: they are small, and pictures and reports look back.
default_hooks = dict(checkpoint=dict(interval=200, max_keep_ckpts=-1))
""",
        f'fast_rcnn_small_ohem_{data.name}.py': f"""# The same with OHEM.
_base_ = '{random}.py'

model = dict(
    train_cfg=dict(
        rcnn=dict(
            # No lower bound for background: hard background may lie anywhere.
            assigner=dict(neg_iou_thr=0.5),
            sampler=dict(
                _delete_=True, type='mmdet_ohem.OHEMSampler', num=_base_.num
            ),
        )
    )
)
""",
    }


def _data_file(data: DataSet, scale: Choice, num: Choice, min_size: Choice) -> str:
    # VOCDataset drops boxes without area by this; CocoDataset does so by itself.
    kept = dict(filter_cfg=dict(filter_empty_gt=False, bbox_min_size=1))
    train = data.train | (kept if data.train['type'] == 'VOCDataset' else {})
    rest = ('metainfo=dict(classes=classes)', 'proposals=proposals')
    return f"""# The data set {data.name}. Edit the values as you like.
_base_ = []  # above the import, or MMEngine takes this for a pure Python config

from mmdet_ohem.datasets import loaders

# The names in the annotations.
classes = {tuple(data.classes)!r}
# Made by:
{_comment(data.prepare)}
# {min_size.value} px: {_rest_of_comment(min_size.reason)}
proposals = {data.proposals!r}
# Images are resized to fit into this, in px: the longer side, the shorter side.
{_comment(scale.reason)}
scale = {scale.value!r}
# RoIs of an image to train on.
{_comment(num.reason)}
num = {num.value}
# Said when a file is missing.
data_help = {f'The data set was set up by: {data.made_by}'!r}

globals().update(
    loaders(
        train={_dict_text(train, rest, 8)},
        test={_dict_text(data.test, rest, 8)},
        scale=scale,
        metric={_dict_text(data.metric(), (), 8)},
    )
)
"""


def read_detector(name: str) -> Config:
    """A config to be fine-tuned.

    Args:
        name: path, or 'mmdet::faster_rcnn/...' of MMDetection's own.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: `fine_tuning_configs` cannot be made of it.
    """
    if '::' in name:
        config = get_config(name)
    elif Path(name).is_file():
        config = Config.fromfile(name)
    else:
        raise FileNotFoundError(f'There is no config {name}.')
    if getattr(config, '_imported_names', None):
        raise ValueError(
            f'{name} is a config in pure Python, which a text config cannot inherit: '
            'give the one with `_base_ = ...`.'
        )
    model = config.get('model') or {}
    stages = rcnn_stages(model)
    if 'roi_head' not in model or not all('sampler' in stage for stage in stages):
        raise ValueError(
            f'{name} has no model.roi_head with train_cfg.rcnn.sampler, where OHEM '
            'could mine; give the config of a two-stage detector.'
        )
    if reason := why_unfit(model.roi_head):
        raise ValueError(
            f'{name}: OHEM cannot mine in {type_name(model.roi_head)}, which {reason}: '
            'give the config of another detector.'
        )
    steps = list(dicts_of(config.train_dataloader.dataset))
    if any(step.get('with_seg') for step in steps):
        raise ValueError(
            f'{name} trains on a semantic map of each image too (with_seg), which '
            'annotations of objects do not have: give the config of another detector.'
        )
    return config


def wants_masks(config: Config) -> bool:
    steps = dicts_of(config.train_dataloader.dataset)
    return any(step.get('with_mask') for step in steps)


def wants_proposals(config: Config) -> bool:
    steps = dicts_of(config.train_dataloader.dataset)
    return any(type_name(step) == STORE_STEP for step in steps)


def fine_tuning_configs(
    detector: str,
    config: Config,
    data: DataSet,
    num: Choice,
    load_from: str | None,
    folder: Path,
) -> dict[str, str]:
    """A pair of configs that inherit a detector's, ready to fine-tune, by file name.

    Args:
        detector: its config as the user names it.
        config: of `read_detector`.
        num: RoIs of an image to train on.
        load_from: path or URL of its weights.
        folder: where the configs will lie.
    """
    if '::' in detector:
        stem, base = detector.rpartition('/')[2].removesuffix('.py'), detector
    else:
        stem, base = Path(detector).stem, os.path.relpath(detector, folder)
    heads = _heads(config.model.roi_head, len(data.classes))
    backbone = ''
    if load_from is not None:
        backbone = '    backbone=dict(init_cfg=None),  # load_from has its weights\n'
    first = f'{stem}_{data.name}.py'
    steps = '_base_.{}.pipeline'
    imports = store = ''
    if wants_proposals(config):
        steps = f"with_step(_base_.{{}}.pipeline, '{STORE_STEP}', store=proposals)"
        imports = '\nfrom mmdet_ohem.datasets import with_step\n'
        store = (
            f'# Made by:\n{_comment(data.prepare)}\nproposals = {data.proposals!r}\n'
        )
    loaders = []
    for name, part in (('train', data.train), ('test', data.test)):
        place = _inner_place(config[f'{name}_dataloader'], f'{name}_dataloader')
        rest = ('metainfo=dict(classes=classes)', f'pipeline={steps.format(place)}')
        if name == 'test':
            rest = ('test_mode=True', *rest)
        elif part['type'] == 'VOCDataset':
            part = part | dict(filter_cfg=dict(filter_empty_gt=False, bbox_min_size=1))
        text = _dict_text(part, rest, 4, delete=True)
        loaders.append(f'{name}_dataloader = dict(\n    dataset={text},\n)\n')
    metric = _dict_text(data.metric(wants_masks(config)), (), 0, delete=True)
    return {
        first: f"""# {stem} on the data set {data.name}, ready to fine-tune.
_base_ = {base!r}
{imports}
# The names in the annotations.
classes = {tuple(data.classes)!r}
num_classes = len(classes)
# Said when a file is missing.
data_help = {f'The data set was set up by: {data.made_by}'!r}
{store}
model = dict(
{backbone}    roi_head=dict(
{heads}    ),
)
{''.join(loaders)}val_dataloader = test_dataloader
test_evaluator = {metric}
val_evaluator = test_evaluator
{_learning_rate(config)}load_from = {load_from!r}
""",
        f'{stem}_ohem_{data.name}.py': f"""# The same with OHEM.
_base_ = {first!r}

{_comment(num.reason)}
ohem = dict(type='mmdet_ohem.OHEMSampler', num={num.value})
{_mining(config)}""",
    }


def _heads(roi_head: dict, num_classes: int) -> str:
    """The class count of every head, as lines of the config."""
    old = as_list(roi_head['bbox_head'])[0].get('num_classes')
    lines = []
    for key, part in roi_head.items():
        parts = [p for p in as_list(part) if isinstance(p, dict)]
        if not any(p.get('num_classes') == old for p in parts):
            continue
        if isinstance(part, dict):
            lines.append(f'        {key}=dict(num_classes=num_classes),\n')
        else:
            lines.append(
                f'        {key}=[\n            dict(head, num_classes=num_classes)\n'
                f'            for head in _base_.model.roi_head.{key}\n        ],\n'
            )
    return ''.join(lines)


def _mining(config: Config) -> str:
    """The sampler of every stage, as text of the config."""
    rcnn = config.model.train_cfg.rcnn
    if isinstance(rcnn, (list, tuple)):
        return (
            'stages = [dict(stage, sampler=ohem) for stage in '
            '_base_.model.train_cfg.rcnn]\n'
            'model = dict(train_cfg=dict(rcnn=stages))\n'
        )
    bound = rcnn.assigner.get('neg_iou_thr')
    assigner = ''
    if isinstance(bound, (list, tuple)):
        assigner = (
            '            # No lower bound for background: it may be hard anywhere.\n'
            f'            assigner=dict(neg_iou_thr={bound[1]!r}),\n'
        )
    return (
        'model = dict(\n    train_cfg=dict(\n        rcnn=dict(\n'
        f'{assigner}            sampler=dict(_delete_=True, **ohem),\n'
        '        )\n    )\n)\n'
    )


def _learning_rate(config: Config) -> str:
    """The rate scaled to one device's images a step, as text of the config."""
    batch = config.train_dataloader.batch_size
    base = (config.get('auto_scale_lr') or {}).get('base_batch_size')
    rate = config.optim_wrapper.optimizer.lr
    if base is None or base == batch:
        return ''
    return (
        f'# {rate:g} belongs to {base} images a step, and one device takes {batch}; '
        'with more\n# devices give tools/train.py --auto-scale-lr.\n'
        f'optim_wrapper = dict(optimizer=dict(lr={rate * batch / base:g}))\n'
        f'auto_scale_lr = dict(base_batch_size={batch})\n'
    )


def _inner_place(part: dict, place: str) -> str:
    """Where the first data set inside the wrappers of a loader is."""
    part, place = part['dataset'], f'{place}.dataset'
    while 'pipeline' not in part or 'dataset' in part:
        if 'dataset' in part:
            part, place = part['dataset'], f'{place}.dataset'
        else:
            part, place = part['datasets'][0], f'{place}.datasets[0]'
    return place


def _comment(text: str) -> str:
    return textwrap.fill(
        text,
        88,
        initial_indent='# ',
        subsequent_indent='# ',
        break_long_words=False,
        break_on_hyphens=False,
    )


def _rest_of_comment(text: str) -> str:
    return _comment(text).removeprefix('# ')


def _dict_text(
    values: dict, rest: tuple[str, ...], indent: int, delete: bool = False
) -> str:
    """A dict as a call of `dict`, a line for each key."""
    pad = ' ' * (indent + 4)
    lines = ['_delete_=True'] if delete else []
    for key, value in values.items():
        if isinstance(value, dict):
            inner = ', '.join(f'{k}={v!r}' for k, v in value.items())
            lines.append(f'{key}=dict({inner})')
        else:
            lines.append(f'{key}={value!r}')
    text = ''.join(f'{pad}{line},\n' for line in [*lines, *rest])
    return f'dict(\n{text}{" " * indent})'
