"""Tools of the repository as processes that end with the command that started them."""

import ctypes
import os
import signal
import subprocess
import sys
from functools import partial

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start_tool(words: list[str], **others) -> subprocess.Popen:
    """Start a Python script; where the system can, it ends with this process, however
    that ends: a run that is killed leaves no training behind, which the next one would
    have beside its own.

    Args:
        words: the script and its arguments.
        others: of `subprocess.Popen`.
    """
    return subprocess.Popen(
        [sys.executable, *words],
        preexec_fn=partial(_end_with_parent, os.getpid())
        if sys.platform == 'linux'
        else None,
        **others,
    )


def _end_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # killed before the system was asked
        os.kill(os.getpid(), signal.SIGKILL)
