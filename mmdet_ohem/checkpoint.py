"""Reading MMEngine's checkpoints without running what stands in them, and finding the
one from which a training goes on.

MMEngine 0.10 calls `torch.load` without `weights_only`, which PyTorch 2.6 turned into
True, and its own checkpoints hold more than tensors: test.py, --resume and load_from
fail (open-mmlab/mmengine issue 1655). Here exactly what MMEngine writes is allowed;
the check stays on for everything else. Before 2.6 PyTorch checks nothing that MMEngine
loads: load only checkpoints that you trust there.
"""

import os
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.utils import digit_version

from mmdet_ohem.whole_file import whole_file

URL_SCHEMES = ('http://', 'https://')


def allow_mmengine_checkpoints() -> None:
    """Let `torch.load` admit the classes that MMEngine's message hub is made of.

    `import mmdet_ohem` does so: MMDetection's own tools could not resume a training of
    this package's configs otherwise.
    """
    if _checks_nothing():
        return
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            # A HistoryBuffer names its statistics by getattr(HistoryBuffer, 'mean');
            # the real getattr would reach far more than that.
            (_statistics_method, 'builtins.getattr'),
            *_under_both_names(np.empty(0).__reduce__()[0]),
            *_under_both_names(np.float64(0).__reduce__()[0]),
            np.ndarray,
            np.dtype,
            type(np.dtype(np.float64)),
            type(np.dtype(np.int64)),
        ]
    )


def check_everything() -> None:
    """Check what MMEngine would unpickle unchecked: checkpoints of a URL, and with
    onedl-mmengine every file that does not pass the check.

    It replaces loaders for the whole process, so the command lines alone call it: a
    program that only imports this package keeps its own.
    """
    if _checks_nothing():
        return
    CheckpointLoader.register_scheme(URL_SCHEMES, _load_from_url, force=True)
    if hasattr(mmengine_checkpoint, '_safe_torch_load'):  # onedl-mmengine's
        mmengine_checkpoint._safe_torch_load = torch.load


def load_checked(path: str | os.PathLike) -> dict:
    """What a checkpoint of a path or a URL holds, on the CPU, with the check on.

    Raises:
        ValueError: it is no checkpoint, or a damaged one.
    """
    path = str(path)
    try:
        if path.startswith(URL_SCHEMES):
            return _load_from_url(path, 'cpu')
        _check_sums(path)
        if _checks_nothing() or not os.path.isfile(path):
            return CheckpointLoader.load_checkpoint(path, 'cpu', logger='silent')
        # Not by MMEngine's loader: that of onedl-mmengine takes the check off where it
        # fails, and no longer allows afterwards what was allowed.
        allow_mmengine_checkpoints()
        return torch.load(path, 'cpu', weights_only=True)
    # PyTorch raises whatever its parser trips over in a broken file.
    except Exception as error:
        raise ValueError(
            f'{path} cannot be read as a checkpoint ({type(error).__name__}): give the '
            '.pth file that a training wrote.'
        ) from error


def save_checkpoint(checkpoint: dict, path: str | os.PathLike) -> None:
    """Write a file as `torch.save` does, whole or not at all.

    Raises:
        OSError: it cannot be written; the message names it.
    """
    try:
        with whole_file(path) as partial, open(partial, 'wb') as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's word for a full disk
        raise OSError(f'{path} could not be written ({error}).') from error


def check_resumable(path: str | os.PathLike) -> None:
    """Raise ValueError if a training cannot go on from a file: it is damaged, or it
    holds weights alone."""
    if not {'meta', 'message_hub', 'state_dict'} <= set(load_checked(path)):
        raise ValueError(
            f'{path} holds weights, but not where its training was: give a checkpoint '
            'that a training wrote, or take the weights by load_from.'
        )


def numbered_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The iter_N.pth and epoch_N.pth of a folder, by N."""
    numbers = {
        path: int(match.group(1))
        for path in Path(folder).glob('*.pth')
        if (match := re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', path.name))
    }
    return sorted(numbers, key=numbers.get)


def is_trained(work_dir: str | os.PathLike, length: int) -> bool:
    """Whether the checkpoint of the last iteration or epoch is there and whole."""
    try:
        name = newest_checkpoint(work_dir)[0]
    except ValueError:
        return False
    return Path(name or '').stem.rpartition('_')[2] == str(length)


def newest_checkpoint(work_dir: str | os.PathLike) -> tuple[str | None, str]:
    """The checkpoint from which the training of a work dir goes on.

    It is the one that the file ``last_checkpoint`` names. Where that is damaged or not
    there, it is the youngest numbered one of the work dir that is whole.

    Returns:
        The checkpoint, None where there is none; and a sentence for people where it is
        not the one that ``last_checkpoint`` names, '' otherwise.

    Raises:
        ValueError: no training can go on from any of the checkpoints that are there.
    """
    last, named = Path(work_dir, 'last_checkpoint'), ''
    if last.is_file():
        # A power failure may leave a file of zeros.
        named = last.read_bytes().decode(errors='replace').strip('\0 \n')
    if '://' in named:
        return named, ''
    # By time, for a file of a higher number may be of an earlier training.
    files = sorted(
        numbered_checkpoints(work_dir), key=lambda file: file.stat().st_mtime
    )
    files = [str(file) for file in reversed(files)]
    if os.path.isfile(named):
        others = [file for file in files if not os.path.samefile(file, named)]
        files = [named, *others]
        reason = ''
    elif named:
        reason = f'{last} names {named}, which is not there'
    else:
        reason = f'{last} is {"empty" if last.is_file() else "not there"}'
    if not files:
        return None, f'{reason}: the training starts anew.' if last.is_file() else ''
    for file in files:
        try:
            check_resumable(file)
        except ValueError as error:
            reason = reason or str(error).partition(': ')[0]
        else:
            return file, reason and f'{reason}: the training goes on from {file}.'
    raise ValueError(
        f'A training can go on from none of {", ".join(files)} (the first: {reason}): '
        'move them away to start anew.'
    )


def _check_sums(path: str) -> None:
    """PyTorch's own reader does not notice a damaged weight."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f'{damaged} is damaged')


def _checks_nothing() -> bool:
    """Whether weights_only is not yet the default."""
    return digit_version(torch.__version__) < digit_version('2.6')


def _load_from_url(filename: str, map_location=None) -> dict:
    def load() -> dict:
        return torch.hub.load_state_dict_from_url(
            filename, map_location=map_location, weights_only=True
        )

    # As in MMEngine: the first process downloads, the others find the file.
    if get_rank() == 0:
        checkpoint = load()
    barrier()
    return checkpoint if get_rank() == 0 else load()


def _under_both_names(function) -> list[tuple]:
    """NumPy 1 calls its module core, NumPy 2 _core: a file may come from either."""
    return [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for core in ('core', '_core')
    ]


def _statistics_method(owner: type, name: str):
    if owner is not HistoryBuffer or name not in HistoryBuffer()._statistics_methods:
        raise ValueError(
            f'A checkpoint asks for {name!r} of {owner!r}, which is nothing that '
            'MMEngine writes; do not load this file.'
        )
    return getattr(HistoryBuffer, name)
