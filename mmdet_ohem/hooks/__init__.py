"""What happens beside training and testing: the log of what is mined, pictures of it,
whole checkpoints, the seeds that make a resumed run repeat the unbroken one, the
statistics of the box targets, false positives beside an RPN's proposals, and the place
of files for an evaluation server."""

from mmdet_ohem.hooks.box_target_statistics import BoxTargetStatisticsHook
from mmdet_ohem.hooks.mined_pictures import MinedPicturesHook
from mmdet_ohem.hooks.mined_proposals import MinedProposalsHook
from mmdet_ohem.hooks.mining_log import MiningHook
from mmdet_ohem.hooks.seed_each_iteration import SeedEachIterationHook, keep_seed
from mmdet_ohem.hooks.server_files import ServerFilesHook
from mmdet_ohem.hooks.whole_checkpoint import WholeCheckpointHook

__all__ = [
    'BoxTargetStatisticsHook',
    'MinedPicturesHook',
    'MinedProposalsHook',
    'MiningHook',
    'SeedEachIterationHook',
    'ServerFilesHook',
    'WholeCheckpointHook',
    'keep_seed',
]
