"""What would quietly spoil a run, said before anything is built."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mmdet.datasets import VOCDataset
from mmengine.config import Config

from mmdet_ohem.proposal_store import ProposalStore

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
    """Look at the annotations of the data sets before anything is built.

    In VOC layout the class names are compared too: MMDetection leaves an object of an
    unknown class out without a word, and hard example mining would then train on it as
    the hardest background there is.

    Args:
        cfg: a config; its key ``data_help``, if there, says where the data come from,
            its key ``ignored_classes`` holds names that may be left out.
        loops: which data sets, of 'train', 'val' and 'test'.

    Raises:
        SystemExit: a list of images or a proposal store is missing, a transform moves
            boxes away from their proposals, or an object is of no known class.
    """
    for loop in loops:
        key = f'{loop}_dataloader.dataset'
        wrapped = (cfg.get(f'{loop}_dataloader') or {}).get('dataset')
        for dataset in _datasets(wrapped):
            path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
            if not path.exists():
                raise SystemExit(
                    f'{path}, the list of {loop} images, is missing. '
                    + cfg.get('data_help', f'Set {key}.data_root and ann_file.')
                )
            if _name(dataset) in ('VOCDataset', 'XMLDataset'):
                _check_class_names(dataset, path, key, cfg.get('ignored_classes', ()))
        _check_proposals(wrapped, key)


def _check_proposals(dataset: dict | None, key: str) -> None:
    """Open the stores, and look for what moves boxes away from them by name:
    LoadStoredProposals sees neither what comes after it, such as Mosaic around the
    data set, nor InstaBoost, which rewrites the annotations themselves."""
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
    for step in stores:
        try:
            ProposalStore(step['store'])
        except (OSError, ValueError) as error:
            raise SystemExit(str(error)) from error


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
            raise SystemExit(f'{path} is missing, and {image_list} names it.')
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


def _datasets(dataset: dict | None) -> Iterator[dict]:
    """The data sets inside MMEngine's wrappers (ConcatDataset, RepeatDataset, ...)."""
    if dataset is None:
        return
    inner = dataset.get('datasets') or [d for d in [dataset.get('dataset')] if d]
    if not inner:
        yield dataset
    for wrapped in inner:
        yield from _datasets(wrapped)
