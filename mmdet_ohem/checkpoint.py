"""Reading MMEngine's checkpoints without running what stands in them.

MMEngine 0.10 calls `torch.load` without `weights_only`, which PyTorch 2.6 turned into
True, and its own checkpoints hold more than tensors: test.py, --resume and load_from
fail (open-mmlab/mmengine issue 1655). Here exactly what MMEngine writes is allowed;
the check stays on for everything else. (Before 2.6 PyTorch checks nothing that MMEngine
loads: load only checkpoints that you trust there.) Checkpoints of a URL get the same
check, which MMEngine and PyTorch leave out for those.
"""

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version


def allow_mmengine_checkpoints() -> None:
    """Let `torch.load` admit the classes that MMEngine's message hub is made of, and
    check what is downloaded."""
    if digit_version(torch.__version__) < digit_version('2.6'):
        return  # weights_only is not yet the default there
    CheckpointLoader.register_scheme(
        ('http://', 'https://'), _load_from_url, force=True
    )
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
