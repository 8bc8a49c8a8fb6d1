"""Loaders and pipelines of a config, from a handful of values.

A config calls these functions while MMEngine reads it, and what they return becomes
plain dicts of the config::

    _base_ = []  # above the import: else MMEngine takes this for a pure Python config

    from mmdet_ohem.datasets import loaders, voc_layout

    globals().update(
        loaders(
            train=voc_layout('data/mine/', 'train', 'data/mine/proposals', ('cat',)),
            test=voc_layout('data/mine/', 'test', 'data/mine/proposals', ('cat',)),
            scale=(1000, 600),
            metric=dict(type='VOCMetric', metric='mAP', eval_mode='area'),
        )
    )

MMEngine's own way, variables of a base file that a child sets anew, does not do it:
they are used while the base is read, before the child's values arrive.
"""

import copy
import math
from collections.abc import Sequence
from fractions import Fraction

from mmdet_ohem.config import as_list, dicts_of, inner_datasets, type_name

META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
STORE_STEP = 'LoadStoredProposals'
# The paper's +M: shorter side 480 to 900, longer at most 1000.
PAPER_SCALES = ((1000, 480), (1000, 576), (1000, 688), (1000, 864), (1000, 900))


def voc_layout(
    data_root: str,
    image_list: str,
    proposals: str | None = None,
    classes: Sequence[str] | None = None,
    year: int | None = None,
    **others,
) -> dict:
    """Images in VOC's layout, for `loaders`.

    Args:
        data_root: folder with Annotations/*.xml, ImageSets/Main/*.txt and
            JPEGImages/*.jpg, or with VOC2007/ and VOC2012/ that have them. Without a
            ``year`` the words VOC2007 and VOC2012 may not be in it: MMDetection would
            print VOC's own classes.
        image_list: name of a file in ImageSets/Main, without .txt.
        proposals: their store; None for a detector that proposes boxes itself.
        classes: names; VOC's twenty if left out.
        year: 2007 or 2012, of VOC itself.
        others: keys of MMDetection's VOCDataset.
    """
    folder = '' if year is None else f'VOC{year}/'
    dataset = dict(
        type='VOCDataset',
        data_root=data_root,
        data_prefix=dict(sub_data_root=folder),
        ann_file=f'{folder}ImageSets/Main/{image_list}.txt',
        proposals=proposals,
        **others,
    )
    if classes is not None:
        dataset['metainfo'] = dict(classes=classes)
    return dataset


def pascal_voc(year: int, split: str, **others) -> dict:
    """A split of VOC with its Selective Search boxes, where docs/experiments.md puts
    them, for `loaders`."""
    root = 'data/VOCdevkit/'
    store = f'{root}selective_search/voc_{year}_{split}'
    return voc_layout(root, split, store, year=year, **others)


def coco(split: str, ann_file: str | None = None) -> dict:
    """A split of COCO with its MCG boxes, where docs/experiments.md puts them, for
    `loaders`.

    Args:
        split: name of the folder of its images.
        ann_file: below data/coco/; that of the split's instances if left out.
    """
    return dict(
        type='CocoDataset',
        data_root='data/coco/',
        ann_file=ann_file or f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'{split}/'),
        proposals=f'data/coco/mcg/{split}',
    )


def loaders(
    train: dict | list[dict],
    test: dict,
    scale: tuple[int, int],
    metric: dict,
    val: dict | str | None = 'test',
    val_metric: dict | None = None,
    max_per_img: int = 100,
) -> dict:
    """The loaders, evaluators and test-time augmentation of a config.

    Training takes two images a step as in Fast R-CNN, flips half of them, and groups
    or repeats none.

    Args:
        train: what to train on, of `voc_layout` and the like; a list is joined.
        test: what to test on.
        scale: longer and shorter side in px that an image may have, in any order.
        metric: of the test set.
        val: what to validate on: 'test', another data set, or None.
        val_metric: of ``val``; the test set's if left out.
        max_per_img: detections of an image with ``--tta``; without it
            ``model.test_cfg.rcnn.max_per_img`` counts.

    Returns:
        train_dataloader, val_dataloader, test_dataloader, val_evaluator,
        test_evaluator, tta_model and tta_pipeline. The last two flip each test image
        (tools/test.py --tta).
    """
    found = dict(
        train_dataloader=dict(
            batch_size=2,
            num_workers=2,
            persistent_workers=True,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=_joined([_train_dataset(scale, part) for part in as_list(train)]),
        ),
        val_dataloader=None,
        val_evaluator=None,
        test_dataloader=_test_dataloader(scale, test),
        test_evaluator=metric,
        tta_model=dict(
            type='DetTTAModel',
            tta_cfg=dict(
                nms=dict(type='nms', iou_threshold=0.3), max_per_img=max_per_img
            ),
        ),
        tta_pipeline=_tta_pipeline(scale, test),
    )
    if val is not None:
        val = test if val == 'test' else val
        found['val_dataloader'] = _test_dataloader(scale, val)
        found['val_evaluator'] = val_metric or metric
    return copy.deepcopy(found)


def _joined(datasets: list[dict]) -> dict:
    if len(datasets) == 1:
        return datasets[0]
    # MMDetection notes VOC's year in dataset_type, and only the years differ.
    return dict(type='ConcatDataset', ignore_keys=['dataset_type'], datasets=datasets)


def _with_pipeline(part: dict, pipeline: list[dict]) -> dict:
    dataset = {key: value for key, value in part.items() if key != 'proposals'}
    return dict(dataset, pipeline=pipeline)


def _proposal_steps(part: dict) -> list[dict]:
    store = part.get('proposals')
    return [] if store is None else [dict(type=f'mmdet_ohem.{STORE_STEP}', store=store)]


def _train_dataset(scale: tuple[int, int], part: dict) -> dict:
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=scale, keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
        *_proposal_steps(part),
        dict(type='PackDetInputs'),
    ]
    return _with_pipeline(part, pipeline)


def _test_dataloader(scale: tuple[int, int], part: dict) -> dict:
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=scale, keep_ratio=True),
        *_proposal_steps(part),
        # After the resize: ground truth is evaluated in the image's own coordinates.
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs', meta_keys=META_KEYS),
    ]
    return dict(
        batch_size=1,
        num_workers=2,
        persistent_workers=True,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=_with_pipeline(dict(part, test_mode=True), pipeline),
    )


def _tta_pipeline(scale: tuple[int, int], part: dict) -> list[dict]:
    """Both directions of each test image; proposals are read after the flip."""
    pack = dict(type='PackDetInputs', meta_keys=(*META_KEYS, 'flip', 'flip_direction'))
    proposals = _proposal_steps(part)
    return [
        dict(type='LoadImageFromFile'),
        dict(
            type='TestTimeAug',
            transforms=[
                [dict(type='Resize', scale=scale, keep_ratio=True)],
                [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
                *([proposals] if proposals else []),
                [dict(type='LoadAnnotations', with_bbox=True)],
                [pack],
            ],
        ),
    ]


def at_several_scales(
    base: dict,
    scales: Sequence[tuple[int, int]] = PAPER_SCALES,
    roi_area: float = 224**2,
) -> dict:
    """The paper's +M: what a config with one scale has to change.

    Training draws one of the scales for each image; with tools/test.py --tta an image
    has all of them, without a flip, and each RoI goes to the one that suits its size.

    Args:
        base: a config of `loaders`, such as ``_base_``.
        scales: longer and shorter side in px.
        roi_area: see `mmdet_ohem.models.multi_scale.choose_scales`.

    Returns:
        train_dataloader, tta_pipeline and tta_model.
    """
    draw_one = dict(type='RandomChoiceResize', scales=list(scales), keep_ratio=True)
    train = copy.deepcopy(base['train_dataloader'])
    for part in dicts_of(train):
        if 'pipeline' in part:
            part['pipeline'] = [
                draw_one if type_name(step) == 'Resize' else step
                for step in part['pipeline']
            ]
    views = dict(
        Resize=[dict(type='Resize', scale=scale, keep_ratio=True) for scale in scales],
        RandomFlip=[dict(type='RandomFlip', prob=0.0)],
    )
    tta_pipeline = copy.deepcopy(base['tta_pipeline'])
    for step in tta_pipeline:
        if type_name(step) == 'TestTimeAug':
            step['transforms'] = [
                views.get(type_name(choices[0]), choices)
                for choices in step['transforms']
            ]
    return dict(
        train_dataloader=train,
        tta_pipeline=tta_pipeline,
        tta_model=dict(
            _delete_=True, type='mmdet_ohem.MultiScaleTTAModel', roi_area=roi_area
        ),
    )


def with_background(
    train_dataloader: dict,
    share: float | None = None,
    store: str | None = None,
    **background,
) -> dict:
    """Train on pictures without objects too.

    In a config that inherits another::

        train_dataloader = with_background(
            _base_.train_dataloader, share=0.25, img_path='data/empty/'
        )

    Args:
        train_dataloader: of a config.
        share: of the background in each batch, by MMDetection's MultiSourceSampler,
            which needs a loop that counts iterations. It rounds down, so a batch has to
            hold 1 / share images or more. None: as it comes, when both are shuffled
            together.
        store: the proposals of the pictures, for a detector without RPN; or for one
            with an RPN the false positives of a background set, which
            `mmdet_ohem.MinedProposalsHook` joins to the RPN's proposals.
        background: keys of `BackgroundDataset`: ``img_path`` or ``background_set``. Its
            ``pipeline`` is that of the first of the data sets, if left out.

    Returns:
        The loader; it replaces the whole one that is inherited.

    Raises:
        ValueError: no picture of a batch would be background, or ``share`` is no
            fraction.
    """
    if share is not None and not 0 < share < 1:
        raise ValueError(
            f'share is {share}; it must be the fraction of each batch that is '
            'background, such as 0.25.'
        )
    loader = copy.deepcopy(dict(train_dataloader))
    own = next(inner_datasets(loader['dataset']))
    for key in ('metainfo', 'pipeline'):
        if key in own:
            background.setdefault(key, copy.deepcopy(own[key]))
    background = dict(type='mmdet_ohem.BackgroundDataset', **background)
    if store is not None:
        background['pipeline'] = _with_store(background['pipeline'], store)
    loader['dataset'] = dict(
        type='ConcatDataset',
        # Which VOCDataset and CocoDataset have beside the classes.
        ignore_keys=['dataset_type', 'palette'],
        datasets=[loader['dataset'], background],
    )
    if share is not None:
        # In whole numbers, for 0.29 * 100 is less than 29.
        part = Fraction(share).limit_denominator(1000)
        source_ratio = [part.denominator - part.numerator, part.numerator]
        check_sources(loader['batch_size'], source_ratio)
        loader['sampler'] = dict(
            type='MultiSourceSampler',
            batch_size=loader['batch_size'],
            source_ratio=source_ratio,
        )
        loader['batch_sampler'] = None
    return dict(loader, _delete_=True)


def _with_store(pipeline: list[dict], store: str) -> list[dict]:
    """A pipeline that reads proposals from a store just before it packs them."""
    steps = [step for step in pipeline if type_name(step) != STORE_STEP]
    is_packing = [type_name(step) == 'PackDetInputs' for step in steps]
    place = is_packing.index(True) if any(is_packing) else len(steps)
    read = dict(type=f'mmdet_ohem.{STORE_STEP}', store=store)
    return [*steps[:place], read, *steps[place:]]


def check_sources(batch_size: int, source_ratio: Sequence[float]) -> None:
    """Raise ValueError where MMDetection's MultiSourceSampler would wait for ever: it
    takes no image of a data set into a batch."""
    if min(source_ratio) < 0:
        raise ValueError(
            f'train_dataloader.sampler.source_ratio is {list(source_ratio)}, and a '
            'share of a batch cannot be negative: set it to 0 or more.'
        )
    shares = [part / sum(source_ratio) for part in source_ratio]
    counts = [int(batch_size * part / sum(source_ratio)) for part in source_ratio]
    counts[0] = batch_size - sum(counts[1:])
    for share, count in zip(shares, counts, strict=True):
        if count == 0:
            least = f'at least {math.ceil(1 / share - 1e-9)}' if share > 0 else 'more'
            raise ValueError(
                f'A batch of {batch_size} images holds none of a data set whose share '
                f'is {share:g}, for MultiSourceSampler rounds down: set '
                f'train_dataloader.batch_size to {least}, or choose another share.'
            )


def with_step(part, name: str, **changes):
    """A copy of a loader, data set or pipeline in which a step has other settings.

    In a config that inherits another::

        train_dataloader = with_step(
            _base_.train_dataloader, 'LoadStoredProposals', store='data/rpn_proposals'
        )

    Args:
        part: of a config.
        name: type of the step, without scope; all steps of this type are changed.
        changes: keys of the step.

    Raises:
        ValueError: there is no such step.
    """
    part = copy.deepcopy(part)
    steps = [step for step in dicts_of(part) if type_name(step) == name]
    if not steps:
        raise ValueError(f'There is no step {name} to change in {part}.')
    for step in steps:
        step.update(changes)
    return part
