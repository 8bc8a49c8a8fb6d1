import errno
import os
import resource
import signal
import threading
import time

import numpy as np
import pytest

from mmdet_ohem.whole_file import only_one, whole_file


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / 'new' / 'table.md'
    with whole_file(path) as partial:
        partial.write_text('half')
        assert not path.exists() and partial.suffix == '.md'
        partial.write_text('whole')
    assert path.read_text() == 'whole'
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_what_fails_leaves_what_was_there(error, tmp_path):
    path = tmp_path / 'table.md'
    path.write_text('before')
    with pytest.raises(error), whole_file(path) as partial:
        partial.write_text('half')
        raise error
    assert path.read_text() == 'before'
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path / 'disk' / 'table.md')
    for text in ('first', 'second'):
        with whole_file(tmp_path / 'link') as partial:
            partial.write_text(text)
        assert (tmp_path / 'link').is_symlink()
        assert (tmp_path / 'disk' / 'table.md').read_text() == text
    assert len(list(tmp_path.rglob('*.md'))) == 1


def test_writers_of_one_file_wait_for_each_other(tmp_path):
    path, started = tmp_path / 'table.md', threading.Event()

    def write(text: str) -> None:
        started.set()
        with whole_file(path) as partial:
            for letter in text:  # with the other's in between, if both wrote
                with open(partial, 'a') as file:
                    file.write(letter)
                time.sleep(0.01)

    with whole_file(path) as partial:
        other = threading.Thread(target=write, args=['second'])
        other.start()
        started.wait()
        partial.write_text('first')
    other.join()
    assert path.read_text() == 'second'
    assert list(tmp_path.iterdir()) == [path]


def write_text(path) -> None:
    path.write_text('x' * 100_000)


def write_array(path) -> None:
    with open(path, 'wb') as file:
        np.save(file, np.zeros(100_000))  # NumPy's own error has no number


@pytest.mark.parametrize('write', [write_text, write_array])
def test_a_full_disk_is_one_sentence_with_the_name(write, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with (
            pytest.raises(OSError, match=r'table.md cannot be written \(.*make room'),
            whole_file(tmp_path / 'table.md') as partial,
        ):
            write(partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match='elsewhere'),
        whole_file(tmp_path / 'table.md') as partial,
    ):
        partial.write_bytes((tmp_path / 'elsewhere').read_bytes())


def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    def refuse(path, *args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr('os.open', refuse)  # root may write everywhere
    words = 'table.md cannot be written .Permission denied'
    with pytest.raises(OSError, match=words), whole_file(tmp_path / 'table.md'):
        pass


def test_a_folder_is_for_one(tmp_path):
    folder = tmp_path / 'work'
    with only_one(folder, 'a search'):
        with (
            pytest.raises(BlockingIOError, match='work is in use: a search is running'),
            only_one(folder, 'a search'),
        ):
            pass
        (folder / 'found').write_text('')
    with only_one(folder, 'a search'):
        (folder / 'found').unlink()
    assert not folder.exists(), 'nothing was left in it'


def test_a_killed_process_holds_no_folder_nor_do_its_children(tmp_path):
    def hold() -> None:
        with only_one(tmp_path, 'a training'):
            worker = os.fork()
            if worker:
                (tmp_path / 'worker.partial').write_text(str(worker))
                os.replace(tmp_path / 'worker.partial', tmp_path / 'worker')
            time.sleep(60)
        os._exit(0)

    holder = os.fork()
    if holder == 0:
        hold()
    while not (tmp_path / 'worker').exists():
        time.sleep(0.01)
    worker = int((tmp_path / 'worker').read_text())
    try:
        with pytest.raises(BlockingIOError), only_one(tmp_path, 'a training'):
            pass
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.kill(worker, 0)  # is alive
        with only_one(tmp_path, 'a training'):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
