"""What the command lines share: from flags to a config, from errors to sentences."""

import errno
import inspect
import os
import re
import warnings
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmdet.models.task_modules.samplers import OHEMSampler as MMDetOHEMSampler
from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from mmdet_ohem.checkpoint import check_everything
from mmdet_ohem.config import is_type, rcnn_stages
from mmdet_ohem.whole_file import naming

# Keys of a config that a run reads, at the top: MMEngine's Runner, MMDetection's tools,
# and this package's.
RUN_KEYS = {
    *inspect.signature(Runner).parameters,
    'auto_scale_lr',
    'background_dataloader',
    'compile',
    'custom_imports',
    'data_help',
    'find_unused_parameters',
    'ignored_classes',
    'model_wrapper_cfg',
    'tta_model',
    'tta_pipeline',
}
# What only writing meets: a disk, a quota or a file that can take no more, and a disk
# that may only be read.
ONLY_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# mmcv's words where an operator has not been built for a device.
NOT_BUILT = re.compile(r'(\w+?)(?:_forward|_backward)?_impl: implementation for device')


@contextmanager
def errors_as_sentences(*others: type[Exception]) -> Iterator[None]:
    """End a command line with one sentence and status 1 where a user can mend it.

    Args:
        others: errors that the user can mend, beside ImportError, OSError and
            ValueError.
    """
    try:
        yield
    except (ImportError, OSError, ValueError, *others) as error:
        raise SystemExit(' '.join(str(_named(error)).split())) from error


def _named(error: Exception, place: str | None = None) -> Exception:
    """Of what could not be written, a sentence that names it.

    Args:
        place: what an error that names no file is about.
    """
    path = getattr(error, 'filename', None) or place
    if path is None or getattr(error, 'errno', None) not in ONLY_WRITING:
        return error
    return naming(path, error)


@contextmanager
def lost_files_as_sentences(work_dir: str) -> Iterator[None]:
    """End a run with one sentence where the system refuses a file: a full disk, a
    folder that may not be written. A bug in a model keeps its traceback.

    Args:
        work_dir: what an error that names no file is about.
    """
    try:
        yield
    except OSError as error:
        if '\n' in str(error):
            raise  # the traceback of a worker that loads data
        raise SystemExit(str(_named(error, work_dir))) from error


@contextmanager
def missing_operators_as_sentences() -> Iterator[None]:
    """End a command line with one sentence where mmcv lacks an operator for the GPU."""
    try:
        yield
    except RuntimeError as error:
        operator = NOT_BUILT.match(str(error))
        if operator is None:
            raise
        raise SystemExit(
            f'mmcv was built without operators for GPUs, and this config needs '
            f'{operator[1]}: install an mmcv with CUDA operators (docs/install.md), or '
            'run on the CPU, with CUDA_VISIBLE_DEVICES= before the command.'
        ) from error


def add_config_arguments(
    parser: ArgumentParser, work_dir: str = 'work_dirs/<name of the config>'
) -> None:
    """The flags that change a config: of every tool that takes one.

    Args:
        work_dir: what --work-dir is if left out, for the help.
    """
    parser.add_argument(
        '--work-dir', help=f'folder for what the tool writes; {work_dir} if left out'
    )
    add_options_argument(parser)


def add_options_argument(parser: ArgumentParser) -> None:
    """The flag that changes settings of a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value: randomness.seed=1 or '
        'key="[a,b]" for a list',
    )


def add_device_argument(parser: ArgumentParser) -> None:
    """The flag of tools that look at what a trained detector does, in one process."""
    parser.add_argument(
        '--device',
        default='cuda:0' if torch.cuda.is_available() else 'cpu',
        help='the GPU if there is one, if left out',
    )


def add_budget_argument(parser: ArgumentParser) -> None:
    """The flag of `set_budget`."""
    parser.add_argument(
        '--budget',
        type=_at_least_one,
        help='iterations to train, or epochs where the config counts those; the steps '
        'of the learning rate move in proportion. As in the config if left out',
    )


def add_mining_arguments(parser: ArgumentParser) -> None:
    """The flags of `mine_background`."""
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='the lowest score of a false positive (default: 0.3); none is below the '
        "config's own model.test_cfg.rcnn.score_thr",
    )
    parser.add_argument(
        '--max-per-image',
        type=_at_least_one,
        default=10,
        help='false positives of a picture that are kept, the surest (default: 10)',
    )
    parser.add_argument(
        '--jobs',
        type=_at_least_one,
        help='processes at a time; one for each GPU if left out, or one on the CPU',
    )


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f'it must be a whole number from 1 on, not {text}.')
    return int(text)


def add_launcher_arguments(parser: ArgumentParser) -> None:
    """The flags of a run that may have several processes."""
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run are started',
    )
    # torchrun of PyTorch 1 and torch.distributed.launch pass it.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by the launcher'
    )


def add_background_arguments(parser: ArgumentParser) -> None:
    """The flags of `add_background`."""
    parser.add_argument(
        '--background',
        metavar='FOLDER',
        help='test on the images of this folder too, which hold no object: how often '
        'is there a false alarm? A pattern or a list (*.txt) will do',
    )
    parser.add_argument(
        '--background-proposals',
        metavar='STORE',
        help='of these images, for a detector that reads proposals',
    )


def load_config(args: Namespace) -> Config:
    """Read the config that the flags of this file ask for.

    From here on MMEngine's checkpoints of a URL are checked as those of a file are.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: an option would change nothing, see `check_options`.
    """
    check_everything()
    if not Path(args.config).is_file():
        raise FileNotFoundError(f'There is no config {args.config}.')
    cfg = Config.fromfile(args.config)
    if args.cfg_options is not None:
        check_options(cfg, args.cfg_options)
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = (
        args.work_dir
        or cfg.get('work_dir')
        or os.path.join('work_dirs', Path(args.config).stem)
    )
    if 'launcher' in args:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        cfg.launcher = args.launcher
        if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
            _use_gloo(cfg)
    return cfg


def check_options(cfg: Config, options: dict) -> None:
    """Look for options that would change nothing, or less than they seem to.

    A variable such as ``data_root`` of a data set's file is used while MMEngine reads
    the file; afterwards it is a copy that nobody asks.

    Args:
        cfg: before the options are merged into it.
        options: value by dotted key, as --cfg-options has them.

    Raises:
        ValueError: an option names such a variable; the message names the keys that
            hold its value now.
    """
    for key in options:
        name = key.partition('.')[0]
        places = _places_of(cfg, name)
        if places:
            raise ValueError(
                f'--cfg-options {key} would change nothing: {name} was used while the '
                f'config was read. Set {" and ".join(places)} instead.'
            )
        if name not in RUN_KEYS:
            warnings.warn(
                f'--cfg-options {key}: no run reads {name!r}; is it misspelt?',
                stacklevel=3,
            )
    for kind in ('dataloader', 'evaluator'):
        changed = [key for key in options if key.startswith(f'val_{kind}.')]
        twins = [key.replace('val_', 'test_', 1) for key in changed]
        if cfg.get(f'test_{kind}') == cfg.get(f'val_{kind}') and not (
            set(twins) <= options.keys()
        ):
            warnings.warn(
                f'--cfg-options {" and ".join(changed)}: test_{kind} is a copy of '
                f'val_{kind}, which this does not change; set {" and ".join(twins)} '
                'for tools/test.py.',
                stacklevel=3,
            )


def _places_of(cfg: Config, name: str) -> list[str]:
    """Dotted keys of what a run reads that hold the value of a variable of the config.

    A number says little, so it counts only under a key of the variable's own name.
    """
    if name in RUN_KEYS or name not in cfg:
        return []
    value = cfg[name]

    def search(part, path: tuple[str, ...]) -> Iterator[str]:
        is_telling = isinstance(value, (str, dict, list, tuple)) and len(value) > 0
        if part == value and (is_telling or path[-1] == name):
            yield '.'.join(path)
        elif isinstance(part, dict):
            for key in part:
                yield from search(part[key], (*path, str(key)))
        elif isinstance(part, (list, tuple)):
            for i, item in enumerate(part):
                yield from search(item, (*path, str(i)))

    return [
        place
        for key in sorted(RUN_KEYS & cfg.keys())
        for place in search(cfg[key], (key,))
    ]


def is_mmdets_ohem(cfg: Config) -> bool:
    """Whether a config's RoI head samples by MMDetection's class of the same name."""
    return any(
        is_type(stage.get('sampler') or {}, MMDetOHEMSampler)
        for stage in rcnn_stages(cfg.model)
    )


def _use_gloo(cfg: Config) -> None:
    """Several processes without a GPU: MMEngine 0.10 sets a CUDA device for every
    backend and passes device_ids to DDP, so both are done here."""
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
