"""Pages to look through: the hardest images, whose labels a training never learns, and
the false positives of a pool of background."""

from mmdet_ohem.reports.background_page import write_background_page
from mmdet_ohem.reports.hardest_images import (
    BACKGROUND,
    Hard,
    Report,
    count_found,
    find_hardest,
    read_spoilt,
)
from mmdet_ohem.reports.hardest_page import write_report

__all__ = [
    'BACKGROUND',
    'Hard',
    'Report',
    'count_found',
    'find_hardest',
    'read_spoilt',
    'write_background_page',
    'write_report',
]
