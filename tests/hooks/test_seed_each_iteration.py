import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from mmengine.utils import get_object_from_string
from support.tools import small_config

from mmdet_ohem.compare.config_changes import make_run
from mmdet_ohem.hooks.seed_each_iteration import SeedEachIterationHook, keep_seed

EPOCHS = """
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2)
train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)
log_processor = dict(by_epoch=True, window_size=1)
"""


def draw(seed: int, rank: int, iteration: int) -> list[float]:
    runner = SimpleNamespace(seed=seed, rank=rank, iter=iteration)
    SeedEachIterationHook().before_train_iter(runner, batch_idx=iteration)
    return torch.rand(3).tolist()


def test_an_iteration_draws_the_same_whatever_came_before():
    unbroken = [draw(0, 0, iteration) for iteration in range(4)]
    assert draw(0, 0, 3) == unbroken[3]


def test_seeds_ranks_and_iterations_all_differ():
    cases = [(s, r, i) for s in (0, 1) for r in (0, 1) for i in (0, 1)]
    assert len({tuple(draw(*case)) for case in cases}) == len(cases)


class Iterator:
    """As onedl-mmengine's, whose `skip_iter` loads nothing."""

    def __init__(self):
        self.loaded = 0

    def __next__(self):
        self.loaded += 1

    def skip_iter(self, num_iters: int):
        pass


def test_data_that_a_fork_would_skip_are_loaded():
    loop = SimpleNamespace(dataloader_iterator=Iterator())
    runner = SimpleNamespace(seed=0, rank=0, epoch=0, train_loop=loop)
    SeedEachIterationHook().before_train_epoch(runner)
    loop.dataloader_iterator.skip_iter(5)
    assert loop.dataloader_iterator.loaded == 5


@pytest.mark.parametrize('num_workers', [0, 2])
def test_a_loop_of_epochs_is_resumed_exactly(num_workers, lookalikes, tmp_path):
    config = small_config(
        tmp_path / 'config.py', lookalikes, 'fast_rcnn_small_lookalikes.py', EPOCHS
    )

    def losses(name: str, **changes) -> list[float]:
        run = make_run(Config.fromfile(config), 'random', seed=0, budget=None)
        run.default_hooks.logger.interval = 1
        run.merge_from_dict(changes)
        run.train_dataloader.num_workers = num_workers
        run.work_dir = str(tmp_path / name)
        run.experiment_name = run.visualizer.name = f'{tmp_path.name}_{name}'
        Runner.from_cfg(run).train()
        (log,) = (tmp_path / name).glob('*/vis_data/scalars.json')
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return [line['loss_cls'] for line in lines]

    unbroken = losses('unbroken')
    assert len(unbroken) == 6  # 6 images in batches of 2
    checkpoint = str(tmp_path / 'unbroken' / 'epoch_1.pth')
    resumed = losses('resumed', resume=True, load_from=checkpoint)
    assert resumed == unbroken[3:]


def test_the_path_that_earlier_versions_dumped_still_resolves():
    found = get_object_from_string('mmdet_ohem.seed_hook.keep_seed')
    assert found is FUNCTIONS.get('mmdet_ohem.keep_seed') is keep_seed
