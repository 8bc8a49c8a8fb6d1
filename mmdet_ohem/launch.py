"""What the command lines train.py and test.py share: from arguments to a config."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from mmengine.config import Config, DictAction


def add_config_arguments(parser: ArgumentParser) -> None:
    """The flags that change a config: of every tool that takes one."""
    parser.add_argument(
        '--work-dir',
        help='folder for what the tool writes; work_dirs/<name of the config> if left '
        'out',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value: randomness.seed=1 or '
        'key="[a,b]" for a list',
    )


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


def load_config(args: Namespace) -> Config:
    """Read the config that the flags of this file ask for.

    Raises:
        SystemExit: the config or a file of the data sets is missing; the message says
            what to do.
    """
    if not Path(args.config).is_file():
        raise SystemExit(f'There is no config {args.config}.')
    cfg = Config.fromfile(args.config)
    if args.cfg_options is not None:
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


def _use_gloo(cfg: Config) -> None:
    """Several processes without a GPU: MMEngine 0.10 sets a CUDA device for every
    backend and passes device_ids to DDP, so both are done here."""
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
