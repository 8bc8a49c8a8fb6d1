from types import SimpleNamespace

import torch

from mmdet_ohem.seed_hook import SeedEachIterationHook


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
