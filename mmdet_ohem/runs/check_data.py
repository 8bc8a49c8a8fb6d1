"""What would quietly spoil a run, said before anything is built."""

import json
import os
import warnings
from pathlib import Path
from xml.etree import ElementTree

from mmdet.datasets import VOCDataset
from mmdet.registry import DATASETS
from mmengine.config import Config

from mmdet_ohem.config import dicts_of, inner_datasets, type_name
from mmdet_ohem.datasets import (
    STORE_STEP,
    check_sources,
    is_box,
    is_difficult,
    read_lines,
    read_voc_annotation,
    voc_box,
)
from mmdet_ohem.proposals import ProposalStore
from mmdet_ohem.runs.check_transforms import check_transforms

VOC_TYPES = ('VOCDataset', 'XMLDataset', 'VOCImages')


def check_data(cfg: Config, loops: tuple[str, ...]) -> None:
    """Look at the parts of the data sets before anything is built.

    In VOC layout the class names are compared too: MMDetection leaves an object of an
    unknown class out without a word, and hard example mining would then train on it as
    the hardest background there is. Of VOC's and COCO's annotations each box that would
    be read is looked at.

    Args:
        cfg: a config; its key ``data_help``, if there, says where the data come from:
            a sentence, or one for each ``data_root``, which says nothing of others.
            Its key ``ignored_classes`` holds names that may be left out.
        loops: which data sets, of 'train', 'val' and 'test'.

    Raises:
        FileNotFoundError: a list of images, an image, an annotation or a proposal
            store is missing.
        ValueError: the store is of other images, a transform moves boxes away from
            their proposals, an object is of no known class or has no box of numbers,
            a file is not of its kind, or there are no annotations to train on or to
            evaluate with; or pictures without objects, or stored proposals, would not
            be trained on.
    """
    if 'train' in loops:
        _check_sampler(cfg)
        _check_stores_beside_rpn(cfg)
    for loop in loops:
        key = f'{loop}_dataloader.dataset'
        wrapped = (cfg.get(f'{loop}_dataloader') or {}).get('dataset')
        check_transforms(wrapped, key)
        for dataset in inner_datasets(wrapped):
            if dataset.get('backend_args'):
                continue  # in a store of objects, an archive, ...
            if type_name(dataset) == 'BackgroundDataset':
                _check_background(dataset, wrapped, key)
                continue
            path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
            if not _is_there(dataset, path):
                raise FileNotFoundError(
                    f'{path}, the list of {loop} images, is missing'
                    + _other_years(dataset)
                    + '. '
                    + _help(cfg, dataset, key)
                )
            if type_name(dataset) in ('VOCDataset', 'XMLDataset'):
                _check_voc(dataset, path, key, cfg.get('ignored_classes', ()))
            images, has_annotations = _read_list(dataset, path)
            if not images and type_name(dataset) in (*VOC_TYPES, 'CocoDataset'):
                raise ValueError(f'{path} has no images: correct {key}.ann_file.')
            if not has_annotations:
                _check_use(cfg, loop, path)
            _check_images(images, path)
            remedy = (
                f'correct the store in {key}.pipeline or make one for these images '
                'with tools/prepare_proposals.py'
            )
            _check_stores(dataset, images, path, remedy)


def _check_sampler(cfg: Config) -> None:
    """What MMDetection's MultiSourceSampler would wait for without end."""
    loader = cfg.get('train_dataloader') or {}
    sampler = loader.get('sampler') or {}
    if type_name(sampler) != 'MultiSourceSampler':
        return
    check_sources(sampler['batch_size'], sampler['source_ratio'])
    if sampler['batch_size'] != loader['batch_size']:
        raise ValueError(
            f'train_dataloader.batch_size is {loader["batch_size"]}, and its '
            f'MultiSourceSampler counts batches of {sampler["batch_size"]}: give '
            'train_dataloader.sampler.batch_size the same number, or the share of each '
            'data set would not hold.'
        )
    loop = cfg.get('train_cfg') or {}
    if loop.get('by_epoch') or type_name(loop) == 'EpochBasedTrainLoop':
        raise ValueError(
            'MultiSourceSampler of train_dataloader.sampler never ends an epoch: set '
            "train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=...), "
            'or leave the share to chance and the sampler out.'
        )


def _check_stores_beside_rpn(cfg: Config) -> None:
    """Stored proposals that would be left aside, and a hook that would do nothing."""
    steps = dicts_of((cfg.get('train_dataloader') or {}).get('dataset'))
    reads_stores = any(type_name(step) == STORE_STEP for step in steps)
    hooks = dicts_of([cfg.get('default_hooks'), cfg.get('custom_hooks')])
    joins_them = any(type_name(hook) == 'MinedProposalsHook' for hook in hooks)
    has_rpn = 'rpn_head' in (cfg.get('model') or {})
    if has_rpn and reads_stores and not joins_them:
        raise ValueError(
            f'train_dataloader reads stored proposals ({STORE_STEP}), which a detector '
            'with an RPN does not use: set default_hooks.mined_proposals='
            "dict(type='mmdet_ohem.MinedProposalsHook') to train on them too, or leave "
            'that step out.'
        )
    if joins_them and not has_rpn:
        raise ValueError(
            'MinedProposalsHook joins stored proposals to those of an RPN, and this '
            'detector has none: leave the hook out.'
        )
    if joins_them and not reads_stores:
        raise ValueError(
            'MinedProposalsHook has nothing to join to the proposals of the RPN: give '
            "with_background store='.../proposals', the folder beside the background "
            'set, or leave the hook out.'
        )


def _check_background(dataset: dict, wrapped: dict, key: str) -> None:
    """Build the data set, which looks at all of it, and compare its classes with those
    beside it, which MMEngine would refuse without naming anything."""
    built = DATASETS.build(dict(dataset, pipeline=[]))
    source = Path(built.img_path or built.background_set[0])
    classes = built.metainfo['classes']
    for other in inner_datasets(wrapped):
        other = DATASETS.build(dict(other, pipeline=[], lazy_init=True))
        others = other.metainfo['classes']
        if list(others) != list(classes):
            raise ValueError(
                f'{key} joins data of the classes {", ".join(others)} with {source}, '
                f'background of others ({", ".join(classes)}): give both the same '
                'metainfo.classes, or mine with a detector of these.'
            )
    images = [
        (info['img_id'], info['img_path'])
        for info in map(built.get_data_info, range(len(built)))
    ]
    remedy = (
        "give with_background store='.../proposals', the folder beside the background "
        'set'
        if built.background_set
        else f'make one with tools/prepare_proposals.py --images {built.img_path} and '
        'give it to with_background as store'
    )
    _check_stores(dataset, images, source, remedy)


def _is_dota(dataset: dict) -> bool:
    """MMRotate's DOTADataset and its kin: ``ann_file`` is a folder with a text file for
    each image, or '' where there are no annotations."""
    return type_name(dataset).startswith('DOTA')


def _is_there(dataset: dict, path: Path) -> bool:
    if not _is_dota(dataset):
        return path.is_file()
    return any(path.glob('*.txt')) if dataset.get('ann_file') else path.is_dir()


def _help(cfg: Config, dataset: dict, key: str) -> str:
    known = cfg.get('data_help')
    if isinstance(known, dict):
        known = known.get(dataset.get('data_root'))
    return known or f'Correct {key}.data_root and ann_file, or put the data there.'


def _other_years(dataset: dict) -> str:
    root = Path(dataset.get('data_root') or '')
    year = Path(dataset.get('ann_file') or '').parts[:1]
    there = sorted(folder.name for folder in root.glob('VOC[0-9]*'))
    if not there or root.joinpath(*year).exists():
        return ''
    return f' (of the years, {root} has {" and ".join(there)} alone)'


def _read_list(dataset: dict, path: Path) -> tuple[list[tuple[str, str]], bool]:
    """(image id, image file) of each image, and whether there are annotations.

    Of kinds of data sets that are not known here nothing is read.
    """
    prefix = dataset.get('data_prefix') or {}
    root = dataset.get('data_root') or ''
    if type_name(dataset) in VOC_TYPES:
        folder = os.path.join(
            root,
            prefix.get('sub_data_root', ''),
            dataset.get('img_subdir', 'JPEGImages'),
        )
        img_ids = read_lines(path)
        images = [(img_id, os.path.join(folder, f'{img_id}.jpg')) for img_id in img_ids]
        return images, type_name(dataset) != 'VOCImages'
    if _is_dota(dataset):
        folder = os.path.join(root, prefix.get('img_path', ''))
        suffix = dataset.get('img_suffix', 'png')
        if not dataset.get('ann_file'):
            return [], False
        names = sorted(file.stem for file in path.glob('*.txt'))
        return [
            (name, os.path.join(folder, f'{name}.{suffix}')) for name in names
        ], True
    if type_name(dataset) != 'CocoDataset':
        return [], True
    try:
        content = json.loads(path.read_bytes())
        folder = os.path.join(root, prefix.get('img', ''))
        images = [
            (str(image['id']), os.path.join(folder, image['file_name']))
            for image in content['images']
        ]
        _check_coco(content)
        seen = {a['image_id'] for a in content.get('annotations', [])}
        empty = {image['id'] for image in content['images']} - seen
    # A RecursionError comes from JSON that is nested deeply.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f'{path} is no COCO annotation file ({type(error).__name__}: '
            f'{str(error)[:200]}): fetch or correct it.'
        ) from error
    _warn_of_dropped(dataset, len(empty), len(images), path)
    return images, 'annotations' in content


def _warn_of_dropped(dataset: dict, empty: int, images: int, path: Path) -> None:
    """Say that images without objects are not trained on, which they could be."""
    filter_cfg = dataset.get('filter_cfg') or {}
    if empty and filter_cfg.get('filter_empty_gt') and not dataset.get('test_mode'):
        warnings.warn(
            f'{empty} of the {images} images of {path} have no object and are left out '
            'of training: set filter_cfg.filter_empty_gt=False of this data set to '
            'train on them as background.',
            stacklevel=3,
        )


def _check_coco(content: dict) -> None:
    """Look at what MMDetection's CocoDataset reads; KeyError, TypeError or ValueError
    where it would end or go on with a box that is none."""
    for image in content['images']:
        if not image['width'] > 0 or not image['height'] > 0:
            raise ValueError(f'the size of image {image["id"]} is no number of px')
    if 'annotations' not in content:
        return
    for category in content['categories']:
        named = isinstance(category['name'], str)
        if not named or not isinstance(category['id'], (int, str)):
            raise ValueError(f'a category has no name or no id: {str(category)[:100]}')
    img_ids = {image['id'] for image in content['images']}
    seen = set()
    for annotation in content['annotations']:
        number, category_id = annotation['id'], annotation['category_id']
        if annotation['image_id'] not in img_ids:
            continue  # a part of a data set may keep all annotations
        if number in seen:
            raise ValueError(f'two annotations have the id {number}')
        seen.add(number)
        if annotation.get('ignore', False):
            continue
        if not is_box(annotation['bbox']):
            raise ValueError(
                f'the bbox of annotation {number} is {str(annotation["bbox"])[:80]} '
                'instead of four numbers of px'
            )
        if type(annotation['area']) not in (int, float):
            raise ValueError(f'the area of annotation {number} is no number')
        if not isinstance(category_id, (int, str)):
            raise ValueError(f'the category_id of annotation {number} is no id')


def _check_use(cfg: Config, loop: str, path: Path) -> None:
    """What a list of images without annotations may be used for."""
    if loop == 'train':
        raise ValueError(
            f'{path} has no annotations to train on: correct train_dataloader.dataset.'
        )
    for metric in dicts_of(cfg.get(f'{loop}_evaluator')):
        if type_name(metric) == 'VOCMetric':
            raise ValueError(
                f'{path} is a list without annotations, so there is no mAP to '
                f'compute: set {loop}_evaluator.type=mmdet_ohem.VOCServerFiles, which '
                "writes what VOC's evaluation server takes, or test on VOC07."
            )
        if type_name(metric) == 'CocoMetric' and not metric.get('format_only'):
            raise ValueError(
                f'{path} has no annotations, so there is no AP to compute: set '
                f'{loop}_evaluator.format_only=True and outfile_prefix to write what '
                "COCO's evaluation server takes, or test on val2014."
            )


def _check_images(images: list[tuple[str, str]], path: Path) -> None:
    names = {}  # in each folder: one look for 118k images
    for _, file in images:
        folder, name = os.path.split(file)
        if folder not in names:
            names[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in names[folder]:
            raise FileNotFoundError(
                f'The image {file:.400} is missing, and {path} names it: unpack all '
                'images of this list there.'
            )


def _check_stores(
    dataset: dict, images: list[tuple[str, str]], path: Path, remedy: str
) -> None:
    for step in dicts_of(dataset.get('pipeline')):
        if type_name(step) != STORE_STEP:
            continue
        store = ProposalStore(step['store'])
        missing = [
            file
            for img_id, file in images
            # As LoadStoredProposals looks them up.
            if img_id not in store and Path(file).stem not in store
        ]
        if missing:
            raise ValueError(
                f'The proposal store {store.path} lacks {len(missing)} of the '
                f'{len(images)} images of {path}, {missing[0]} first: it seems made '
                f'for others, so {remedy}.'
            )


def _check_voc(
    dataset: dict, image_list: Path, key: str, ignored: tuple[str, ...]
) -> None:
    # MMDetection's own reading: the names, a file of names, or VOC's.
    classes = VOCDataset._load_metainfo(dataset.get('metainfo'))['classes']
    known = {*classes, *ignored}
    folder = Path(
        dataset.get('data_root') or '',
        dataset.get('data_prefix', {}).get('sub_data_root', ''),
        dataset.get('ann_subdir', 'Annotations'),
    )
    image_ids = read_lines(image_list)
    empty = 0
    for image_id in image_ids:
        path = folder / f'{image_id}.xml'
        if not path.is_file():
            raise FileNotFoundError(
                f'{path} is missing, and {image_list} names it: unpack the annotations '
                "of this list there; a test set without public ones, such as VOC12's, "
                'is tested as configs/_base_/datasets/voc12.py does.'
            )
        annotation = read_voc_annotation(path).getroot()
        _check_size(annotation, path)
        names = {node.findtext('name') for node in annotation.iterfind('object')}
        empty += names.isdisjoint(classes)
        for node in annotation.iterfind('object'):
            name = node.findtext('name')
            shown = repr(name and name[:80])
            if name not in known:
                raise ValueError(
                    f'{path} has an object of class {shown}, which is none of '
                    f'{key}.metainfo.classes ({", ".join(classes)}): correct one of '
                    'them, or set ignored_classes in the config to train on such '
                    'objects as background.'
                )
            if name in classes:
                voc_box(node, path)
                is_difficult(node, path)
    _warn_of_dropped(dataset, empty, len(image_ids), image_list)


def _check_size(annotation: ElementTree.Element, path: Path) -> None:
    size = annotation.find('size')
    if size is not None and not (
        _is_int(size.findtext('width')) and _is_int(size.findtext('height'))
    ):
        raise ValueError(f'{path}: the size of the image is no number: correct it.')


def _is_int(text: str | None) -> bool:
    try:
        int(text)
    except (TypeError, ValueError):
        return False
    return True
