"""A test, and its second pass, over images without objects."""

import copy

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner, TestLoop

from mmdet_ohem.config import dicts_of, inner_datasets, type_name
from mmdet_ohem.datasets import STORE_STEP, with_step
from mmdet_ohem.evaluation import BackgroundMetric, FROCMetric
from mmdet_ohem.runs.detector import test_metainfo


def add_background(cfg: Config, folder: str, store: str | None = None) -> None:
    """Give a config ``background_dataloader``, which `run_test` asks for.

    Args:
        cfg: changed in place; its ``test_dataloader`` says how images are read.
        folder: of images without objects, or a pattern or list of them.
        store: the proposals of these images.

    Raises:
        ValueError: the detector needs proposals and has no store for them.
    """
    own = next(inner_datasets(cfg.test_dataloader.dataset))
    pipeline = own.pipeline
    if any(type_name(step) == STORE_STEP for step in dicts_of(pipeline)):
        if store is None:
            raise ValueError(
                f'The detector reads proposals, and there are none of {folder}: make '
                'them with tools/prepare_proposals.py selective-search --images '
                f'{folder} --out STORE, and give --background-proposals STORE.'
            )
        pipeline = with_step(pipeline, STORE_STEP, store=store)
    cfg.background_dataloader = copy.deepcopy(cfg.test_dataloader)
    cfg.background_dataloader.dataset = dict(
        type='mmdet_ohem.BackgroundDataset',
        img_path=folder,
        metainfo=dict(classes=test_metainfo(cfg)['classes']),
        pipeline=pipeline,
        test_mode=True,
    )


def run_test(runner: Runner) -> None:
    """Test; then, if the config has a ``background_dataloader``, run the detector over
    that, too, and report it with the hits of the test set (`BackgroundMetric`)."""
    background = runner.cfg.get('background_dataloader')
    if background is None:
        runner.test()
        return
    metrics = runner.test_evaluator.metrics
    found = [metric for metric in metrics if isinstance(metric, FROCMetric)]
    if not found:
        found = [FROCMetric()]
        found[0].dataset_meta = runner.test_evaluator.dataset_meta
        metrics.append(found[0])
    runner.test()
    evaluator = Evaluator([BackgroundMetric(found[0])])
    TestLoop(runner, background, evaluator).run()
