"""A config on a validation split, where the learning rate of each sampler is chosen."""

import copy
import os

from mmengine.config import Config

from mmdet_ohem.compare.config_changes import LABELS
from mmdet_ohem.config import as_list, dicts_of, inner_datasets, type_name
from mmdet_ohem.datasets import STORE_STEP, same_content, with_step
from mmdet_ohem.runs import image_files


def split_config(config: Config, train: str, val: str) -> Config:
    """The config that trains on one annotation file and tests on another.

    Both are of the config's training data: their images, annotations and proposals lie
    where those of the training set do.

    Args:
        config: it stays as it is.
        train, val: ``ann_file`` of a data set, as the config itself has it.

    Raises:
        ValueError: the config trains on several data sets, or on one without
            annotation file; a file is not there; or images of ``val`` are among those
            of ``train`` or of the config's test set.
    """
    own = list(inner_datasets(config.train_dataloader.dataset))
    if len(own) > 1 or not own[0].get('ann_file'):
        raise ValueError(
            '--select needs a config that trains on one data set with an annotation '
            f'file (ann_file); this one has {len(own)}: choose the learning rate by '
            'hand, with --cfg-options.'
        )
    split = copy.deepcopy(config)
    # A second pass is for the test set alone.
    split.pop('background_dataloader', None)
    (trained_on,) = inner_datasets(split.train_dataloader.dataset)
    trained_on.ann_file = train
    # Of several joined test sets all have the first one's pipeline, or one like it.
    pipeline = next(inner_datasets(split.test_dataloader.dataset)).pipeline
    stores = [step.store for step in dicts_of(own[0]) if type_name(step) == STORE_STEP]
    if stores:
        pipeline = with_step(pipeline, STORE_STEP, store=stores[0])
    split.test_dataloader.dataset = tested_on = copy.deepcopy(own[0])
    tested_on.update(ann_file=val, test_mode=True, pipeline=pipeline)
    # Nothing is left out in a test, and VOCDataset fails with bbox_min_size there.
    tested_on.pop('filter_cfg', None)
    for evaluator in as_list(split.test_evaluator):
        if 'ann_file' in evaluator:  # CocoMetric's, a whole path
            evaluator.ann_file = os.path.join(tested_on.get('data_root') or '', val)
    _check_apart(split, train, config)
    return split


def _check_apart(split: Config, train: str, config: Config) -> None:
    """Refuse images on which nothing may be chosen."""
    chosen_on = _images(split.test_dataloader)
    for others, name, advice in (
        (
            split.train_dataloader,
            f'{train}, which the learning rates are trained on',
            'give a list of other images',
        ),
        (
            config.test_dataloader,
            "the config's test set",
            'a learning rate that is chosen there is no fair one; give a part of the '
            'training set',
        ),
    ):
        for file, same in same_content(chosen_on, _images(others)):
            raise ValueError(
                f'--select: {file} of the validation split is an image of {name} '
                f'({same}): {advice}.'
            )


def _images(loader: dict) -> list[str]:
    parts = inner_datasets(loader.dataset)
    return [file for dataset in parts for file in image_files(dataset)]


def best_rates(results: list[dict]) -> dict[str, float]:
    """By sampler the learning rate with the highest mAP; of equals the first."""
    best: dict[str, dict] = {}
    for result in results:
        before = best.setdefault(result['sampler'], result)
        if result['mAP'] > before['mAP']:
            best[result['sampler']] = result
    return {sampler: result['lr'] for sampler, result in best.items()}


def rates_table(results: list[dict], train: str, val: str) -> str:
    """A Markdown table: mAP on the validation split, one row per sampler."""
    rates = list(dict.fromkeys(result['lr'] for result in results))
    chosen = best_rates(results)
    scores = {(result['sampler'], result['lr']): result['mAP'] for result in results}
    lines = [
        f'mAP on {val} after training on {train}, one seed; the highest is bold:\n',
        '| sampler |' + ''.join(f' lr {rate:g} |' for rate in rates),
        '|---|' + '---|' * len(rates),
    ]
    for sampler, best in chosen.items():
        cells = []
        for rate in rates:
            score = f'{scores[sampler, rate]:.3f}'
            cells.append(f' **{score}** |' if rate == best else f' {score} |')
        lines.append(f'| {LABELS[sampler]} |{"".join(cells)}')
    ends = {min(rates), max(rates)}
    at_end = [name for name, rate in chosen.items() if rate in ends]
    if len(rates) > 1 and at_end:
        lines.append(
            f'\nOf {", ".join(at_end)} the best is the lowest or the highest that was '
            'tried: others beyond it may be better.'
        )
    return '\n'.join([*lines, ''])
