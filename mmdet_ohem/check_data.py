"""What would quietly spoil a run, said before anything is built."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mmdet.datasets import VOCDataset
from mmengine.config import Config

from mmdet_ohem.proposal_store import ProposalStore

VOC_TYPES = ('VOCDataset', 'XMLDataset', 'VOCImages')
# Transforms that move boxes and record it: proposals are read after them.
RECORDED = {
    'FixScaleResize',
    'RandomChoiceResize',
    'RandomCrop',
    'RandomFlip',
    'RandomResize',
    'Resize',
    'ResizeShortestEdge',
    'Rotate',
    'ShearX',
    'ShearY',
    'TranslateX',
    'TranslateY',
}
# Transforms of MMDetection 3.3 that move, add or paste boxes unrecorded.
UNRECORDED = {
    'Albu',
    'CachedMixUp',
    'CachedMosaic',
    'CopyPaste',
    'Expand',
    'InstaBoost',
    'MinIoURandomCrop',
    'MixUp',
    'Mosaic',
    'RandomAffine',
    'RandomCenterCropPad',
    'RandomShift',
}


def check_data(cfg: Config, loops: tuple[str, ...]) -> None:
    """Look at the parts of the data sets before anything is built.

    In VOC layout the class names are compared too: MMDetection leaves an object of an
    unknown class out without a word, and hard example mining would then train on it as
    the hardest background there is.

    Args:
        cfg: a config; its key ``data_help``, if there, says where the data come from,
            its key ``ignored_classes`` holds names that may be left out.
        loops: which data sets, of 'train', 'val' and 'test'.

    Raises:
        SystemExit: a list of images, an image, an annotation or a proposal store is
            missing, the store is of other images, a transform moves boxes away from
            their proposals, an object is of no known class, or there are no
            annotations to train on or to evaluate with.
    """
    for loop in loops:
        key = f'{loop}_dataloader.dataset'
        wrapped = (cfg.get(f'{loop}_dataloader') or {}).get('dataset')
        _check_transforms(wrapped, key)
        for dataset in inner_datasets(wrapped):
            if dataset.get('backend_args'):
                continue  # in a store of objects, an archive, ...
            path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
            if not path.is_file():
                raise SystemExit(
                    f'{path}, the list of {loop} images, is missing'
                    + _other_years(dataset)
                    + '. '
                    + cfg.get('data_help', f'Set {key}.data_root and ann_file.')
                )
            if _name(dataset) in ('VOCDataset', 'XMLDataset'):
                _check_class_names(dataset, path, key, cfg.get('ignored_classes', ()))
            images, has_annotations = _read_list(dataset, path)
            if not has_annotations:
                _check_use(cfg, loop, path)
            _check_images(images, path)
            _check_stores(dataset, images, path, key)


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
    if _name(dataset) in VOC_TYPES:
        folder = os.path.join(
            root,
            prefix.get('sub_data_root', ''),
            dataset.get('img_subdir', 'JPEGImages'),
        )
        img_ids = path.read_text().splitlines()
        images = [(img_id, os.path.join(folder, f'{img_id}.jpg')) for img_id in img_ids]
        return images, _name(dataset) != 'VOCImages'
    if _name(dataset) != 'CocoDataset':
        return [], True
    try:
        content = json.loads(path.read_bytes())
        folder = os.path.join(root, prefix.get('img', ''))
        images = [
            (str(image['id']), os.path.join(folder, image['file_name']))
            for image in content['images']
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f'{path} is no COCO annotation file ({error!r}): fetch it again.'
        ) from error
    return images, 'annotations' in content


def _check_use(cfg: Config, loop: str, path: Path) -> None:
    """What a list of images without annotations may be used for."""
    if loop == 'train':
        raise SystemExit(
            f'{path} has no annotations to train on: correct train_dataloader.dataset.'
        )
    for metric in _dicts(cfg.get(f'{loop}_evaluator')):
        if _name(metric) == 'VOCMetric':
            raise SystemExit(
                f'{path} is a list without annotations, so there is no mAP to '
                f'compute: set {loop}_evaluator.type=mmdet_ohem.VOCServerFiles, which '
                "writes what VOC's evaluation server takes, or test on VOC07."
            )
        if _name(metric) == 'CocoMetric' and not metric.get('format_only'):
            raise SystemExit(
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
            raise SystemExit(
                f'The image {file} is missing, and {path} names it: unpack all images '
                'of this list there.'
            )


def _check_stores(
    dataset: dict, images: list[tuple[str, str]], path: Path, key: str
) -> None:
    for step in _dicts(dataset.get('pipeline')):
        if _name(step) != 'LoadStoredProposals':
            continue
        try:
            store = ProposalStore(step['store'])
        except (OSError, ValueError) as error:
            raise SystemExit(str(error)) from error
        missing = [
            file
            for img_id, file in images
            # As LoadStoredProposals looks them up.
            if img_id not in store and Path(file).stem not in store
        ]
        if missing:
            raise SystemExit(
                f'The proposal store {store.path} lacks {len(missing)} of the '
                f'{len(images)} images of {path}, {missing[0]} first: it seems made '
                f'for another split, so correct the store in {key}.pipeline or make '
                'one for these images with tools/prepare_proposals.py.'
            )


def _check_transforms(dataset: dict | None, key: str) -> None:
    """Look by name for what moves boxes away from stored proposals: the step that
    reads them sees neither what comes after it, such as Mosaic around the data set,
    nor InstaBoost, which rewrites the annotations themselves."""
    steps = list(_dicts(dataset))
    stores = [step for step in steps if _name(step) == 'LoadStoredProposals']
    unrecorded = [_name(step) for step in steps if _name(step) in UNRECORDED]
    if stores and unrecorded:
        raise SystemExit(
            f'{key} has {unrecorded[0]}, which moves boxes without recording '
            "'homography_matrix', so that stored proposals would not fit: leave it "
            'out, or use Resize, RandomFlip, RandomCrop, Rotate, Shear and Translate.'
        )
    for config in steps:
        for pipeline in (config.get('pipeline'), config.get('transforms')):
            _check_order(pipeline or [], key)


def _check_order(pipeline: list, key: str) -> None:
    """The steps of a pipeline may be lists of alternatives, as in TestTimeAug."""
    is_read = False
    for step in pipeline:
        names = {_name(inner) for inner in _dicts(step)}
        if is_read and names & RECORDED:
            raise SystemExit(
                f'{key} has {sorted(names & RECORDED)[0]} after LoadStoredProposals, '
                'which would leave the proposals where they were: make '
                'LoadStoredProposals the last step before PackDetInputs.'
            )
        is_read = is_read or 'LoadStoredProposals' in names


def _dicts(config) -> Iterator[dict]:
    """Every dict inside a config, itself included."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _dicts(value)


def _name(config: dict) -> str:
    """The type without its scope."""
    return str(config.get('type')).rpartition('.')[2]


def _check_class_names(
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
    for image_id in image_list.read_text().splitlines():
        path = folder / f'{image_id}.xml'
        if not path.exists():
            raise SystemExit(
                f'{path} is missing, and {image_list} names it: unpack the annotations '
                "of this list there; a test set without public ones, such as VOC12's, "
                'is tested as configs/_base_/datasets/voc12.py does.'
            )
        try:
            annotation = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise SystemExit(f'{path} is no whole XML file ({error}).') from error
        for name in annotation.iterfind('object/name'):
            if name.text not in known:
                raise SystemExit(
                    f'{path} has an object of class {name.text!r}, which is none of '
                    f'{key}.metainfo.classes ({", ".join(classes)}): correct one of '
                    'them, or set ignored_classes in the config to train on such '
                    'objects as background.'
                )


def inner_datasets(dataset: dict | None) -> Iterator[dict]:
    """The data sets inside MMEngine's wrappers (ConcatDataset, RepeatDataset, ...)."""
    if dataset is None:
        return
    inner = dataset.get('datasets') or [d for d in [dataset.get('dataset')] if d]
    if not inner:
        yield dataset
    for wrapped in inner:
        yield from inner_datasets(wrapped)
