"""The path by which configs that version 0.1 dumped name `keep_seed`."""

from mmdet_ohem.hooks import SeedEachIterationHook, keep_seed

__all__ = ['SeedEachIterationHook', 'keep_seed']
