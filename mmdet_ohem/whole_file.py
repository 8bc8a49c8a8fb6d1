"""A file that is there whole or not at all, and a folder that one process has alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where two processes are not kept apart
    fcntl = None


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` when the block ends.

    It lies in the same folder, which is made, and has the same suffix, by which some
    writers know the format. If the block fails, what was at ``path`` before stays, and
    nothing else is left. Behind a link the file itself is replaced. Processes that
    write the same file wait for each other; the name that a killed one leaves is the
    next one's.

    Raises:
        OSError: The file cannot be written; the message names it.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f'{path.stem}.partial{path.suffix}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked_file(partial):
            try:
                yield partial
                os.replace(partial, path)
            except BaseException:  # else the name may be another writer's by now
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise naming(path, error, partial) from error


def naming(
    path: str | os.PathLike, error: OSError, partial: str | os.PathLike = ''
) -> OSError:
    """An error of the system as a sentence that names what could not be written.

    A full disk comes without a name.

    Args:
        path: what was to be written.
        partial: the name under which it is; an error about another one stays.
    """
    if error.filename is not None and not str(error.filename).startswith(str(partial)):
        return error
    return OSError(
        f'{path} cannot be written ({error.strerror or error}): make room or get the '
        'right to write there, or choose another folder.'
    )


@contextmanager
def only_one(folder: str | os.PathLike, work: str) -> Iterator[None]:
    """Have a folder for this process alone. It is made, and goes if nothing is in it.

    The lock ends with the process, however it ends. A file system without locks keeps
    nobody apart.

    Args:
        work: what is done in the folder, for the message: 'a training'.

    Raises:
        BlockingIOError: another process has the folder.
    """
    folder = Path(folder)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        lock = os.open(folder, os.O_RDONLY)
        try:
            _lock(lock, wait=False)
        except BlockingIOError:
            os.close(lock)
            raise BlockingIOError(
                f'{folder} is in use: {work} is running there already. Wait for it, or '
                'choose another folder.'
            ) from None
        if _is_at(lock, folder):
            break
        os.close(lock)  # whoever had the folder has just removed it
    _held.add(lock)
    try:
        yield
    finally:
        if lock in _held:  # not in a forked child
            if _is_at(lock, folder):
                with suppress(OSError):
                    folder.rmdir()
            _held.remove(lock)
            os.close(lock)


@contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _lock(lock, wait=True)
        if _is_at(lock, path):
            break
        os.close(lock)  # whoever had the name has put the file in its place
    try:
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        pass  # this file system has no locks


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


# A forked child, such as a worker that loads data, would hold the lock as well, and may
# outlive a killed parent.
_held: set[int] = set()


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)
