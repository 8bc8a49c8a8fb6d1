"""Transforms that would quietly move boxes away from their stored proposals, or leave
out pictures without objects."""

from mmdet_ohem.config import dicts_of, inner_datasets, type_name

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
# Transforms of MMDetection 3.3 that drop an image without objects unless a key says
# otherwise; MMEngine then takes another image in its place.
DROPPING = {
    # The key, its default, and what keeps the image.
    'Albu': ('skip_img_without_anno', False, False),
    'FilterAnnotations': ('keep_empty', True, False),
    'RandomCrop': ('allow_negative_crop', False, True),
}


def check_transforms(dataset: dict | None, key: str) -> None:
    """Look by name for what moves boxes away from stored proposals: the step that
    reads them sees neither what comes after it, such as Mosaic around the data set,
    nor InstaBoost, which rewrites the annotations themselves. And look for what drops
    pictures that are there for having no objects."""
    steps = list(dicts_of(dataset))
    stores = [step for step in steps if type_name(step) == 'LoadStoredProposals']
    unrecorded = [type_name(step) for step in steps if type_name(step) in UNRECORDED]
    if stores and unrecorded:
        raise ValueError(
            f'{key} has {unrecorded[0]}, which moves boxes without recording '
            "'homography_matrix', so that stored proposals would not fit: leave it "
            'out, or use Resize, RandomFlip, RandomCrop, Rotate, Shear and Translate.'
        )
    for config in steps:
        for pipeline in (config.get('pipeline'), config.get('transforms')):
            _check_order(pipeline or [], key)
        if 'pipeline' in config and any(
            type_name(inner) == 'BackgroundDataset' for inner in inner_datasets(config)
        ):
            _check_background(config['pipeline'], key)


def _check_background(pipeline: list, key: str) -> None:
    for step in dicts_of(pipeline):
        name = type_name(step)
        setting, default, kept = DROPPING.get(name, (None, None, None))
        if setting and bool(step.get(setting, default)) != kept:
            raise ValueError(
                f'{key} has {name}, which drops every picture of BackgroundDataset: '
                f'set {setting}={kept} there.'
            )


def _check_order(pipeline: list, key: str) -> None:
    """The steps of a pipeline may be lists of alternatives, as in TestTimeAug."""
    is_read = False
    for step in pipeline:
        names = {type_name(inner) for inner in dicts_of(step)}
        if is_read and names & RECORDED:
            raise ValueError(
                f'{key} has {sorted(names & RECORDED)[0]} after LoadStoredProposals, '
                'which would leave the proposals where they were: make '
                'LoadStoredProposals the last step before PackDetInputs.'
            )
        is_read = is_read or 'LoadStoredProposals' in names
