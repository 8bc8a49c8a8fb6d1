"""Samplers against each other: one config trained with several of them, and a table."""

from mmdet_ohem.compare.comparison import compare
from mmdet_ohem.compare.config_changes import (
    SAMPLERS,
    fitting_samplers,
    set_sampler,
    why_not,
)
from mmdet_ohem.compare.run_logs import read_test

__all__ = [
    'SAMPLERS',
    'compare',
    'fitting_samplers',
    'read_test',
    'set_sampler',
    'why_not',
]
