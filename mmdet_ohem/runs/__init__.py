"""From a command line to a run: flags, checks of the data, a trained detector, its
detections on pictures and what it gets wrong in a pool of background; and from a folder
of one's own to configs."""

from mmdet_ohem.runs.background import add_background, run_test
from mmdet_ohem.runs.bootstrap import Bootstrap, run_tool
from mmdet_ohem.runs.budget import budget_unit, set_budget
from mmdet_ohem.runs.check_data import check_data
from mmdet_ohem.runs.check_gpu import check_gpu
from mmdet_ohem.runs.check_score_thr import check_score_thr
from mmdet_ohem.runs.child import start_tool
from mmdet_ohem.runs.detect import PictureDetector, detect_pictures
from mmdet_ohem.runs.detector import load_detector, load_weights, to_device
from mmdet_ohem.runs.launch import (
    add_background_arguments,
    add_budget_argument,
    add_config_arguments,
    add_device_argument,
    add_launcher_arguments,
    add_mining_arguments,
    add_options_argument,
    errors_as_sentences,
    is_mmdets_ohem,
    load_config,
    lost_files_as_sentences,
    missing_operators_as_sentences,
)
from mmdet_ohem.runs.mine import (
    BACKGROUND,
    PROPOSALS,
    image_files,
    mine_background,
)
from mmdet_ohem.runs.new_configs import (
    DataSet,
    fine_tuning_configs,
    read_detector,
    small_configs,
    wants_masks,
    wants_proposals,
)
from mmdet_ohem.runs.own_data import (
    Source,
    Split,
    class_names,
    dataset_config,
    describe,
    has_masks,
    make_splits,
    sample_proposals,
)
from mmdet_ohem.runs.publish import publish

__all__ = [
    'BACKGROUND',
    'Bootstrap',
    'DataSet',
    'PROPOSALS',
    'PictureDetector',
    'Source',
    'Split',
    'add_background',
    'add_background_arguments',
    'add_budget_argument',
    'add_config_arguments',
    'add_device_argument',
    'add_launcher_arguments',
    'add_mining_arguments',
    'add_options_argument',
    'budget_unit',
    'check_data',
    'check_gpu',
    'check_score_thr',
    'class_names',
    'dataset_config',
    'describe',
    'detect_pictures',
    'errors_as_sentences',
    'fine_tuning_configs',
    'has_masks',
    'image_files',
    'is_mmdets_ohem',
    'load_config',
    'load_detector',
    'load_weights',
    'lost_files_as_sentences',
    'make_splits',
    'mine_background',
    'missing_operators_as_sentences',
    'publish',
    'read_detector',
    'run_test',
    'run_tool',
    'sample_proposals',
    'set_budget',
    'small_configs',
    'start_tool',
    'to_device',
    'wants_masks',
    'wants_proposals',
]
