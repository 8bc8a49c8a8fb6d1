"""Python programs in processes that are forked from one that has imported all that the
repository's tools need: to start them often, and to kill them.

A `ToolServer` has a socket. Who connects sends the words behind `python`, and gets the
process id and in the end the exit status; who goes away ends the program. The tests do
that themselves (`ToolServer.start`), and so does a program `python` in the server's
folder, for shell scripts and tools that start another one.
"""

import importlib
import json
import logging
import os
import resource
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from support.tools import spare_configs_their_time

ROOT = Path(__file__).parents[2]
IMPORTED = (
    'matplotlib.pyplot',
    'mmdet.models',
    'mmdet.datasets',
    'mmdet.evaluation',
    'mmdet.visualization',
    'mmdet_ohem.compare',
    'mmdet_ohem.evaluation',
    'mmdet_ohem.hooks',
    'mmdet_ohem.proposals',
    'mmdet_ohem.reports',
    'torch._dynamo',  # by every optimizer
    'torch.distributed.run',
)
PYTHON = """#!/bin/sh
exec {python} -S -E {client} {socket} "$@"
"""


class ToolServer:
    """Forks programs, each in a session of its own.

    Args:
        folder: gets the program `python`, and the log of what `start` starts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / 'python'
        # Not in `folder`: the path of a socket has at most a hundred characters.
        self._place = tempfile.TemporaryDirectory()
        self._socket = str(Path(self._place.name, 'socket'))
        words = dict(
            python=sys.executable,
            client=Path(__file__).with_name('forked_python.py'),
            socket=self._socket,
        )
        self.python.write_text(
            PYTHON.format(**{k: shlex.quote(str(v)) for k, v in words.items()})
        )
        self.python.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'support.forked_tools', self._socket, self.python],
            cwd=ROOT / 'tests',
            env=dict(os.environ, OMP_NUM_THREADS='1'),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # onedl-mmdetection prints a line when it is imported.
        while (line := self._process.stdout.readline()) != 'ready\n':
            assert line, 'The server has ended.'
        self._connections = {}

    def start(self, *words, max_file: int | None = None) -> int:
        """Start a tool; returns its process id.

        Args:
            max_file: bytes after which every file is full.
        """
        words = [str(ROOT / words[0]), *map(str, words[1:])]
        environment = dict(os.environ, OMP_NUM_THREADS='1')
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._socket)
        with open(os.devnull) as nothing, open(self.log, 'a') as log:
            request = dict(
                words=words, cwd=str(ROOT), environment=environment, max_file=max_file
            )
            streams = [nothing.fileno(), log.fileno(), log.fileno()]
            socket.send_fds(connection, [json.dumps(request).encode() + b'\n'], streams)
        answers = connection.makefile()
        pid = int(answers.readline())
        self._connections[pid] = connection, answers
        return pid

    def wait(self, pid: int, seconds: float = 600) -> int | None:
        """The exit status, minus the signal of a killed tool; None if it still runs."""
        connection, answers = self._connections[pid]
        if not select.select([connection], [], [], seconds)[0]:
            return None
        del self._connections[pid]
        with connection, answers:
            return int(answers.readline())

    def run(self, *words, max_file: int | None = None) -> tuple[int, str]:
        """A tool to its end: its exit status, and what it wrote."""
        self.log.unlink(missing_ok=True)
        status = self.wait(self.start(*words, max_file=max_file))
        return status, self.log.read_text()

    @property
    def log(self) -> Path:
        return self.folder / 'tool.log'

    def close(self) -> None:
        # Not by the end of its input: workers of data loaders may hold that open.
        self._process.terminate()
        self._process.communicate()
        self._place.cleanup()


def processes_of(session: int) -> list[int]:
    """The processes of a session that are still there (Linux)."""
    found = []
    for status in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = status.read_text().rpartition(')')[2].split()
        except OSError:
            continue
        if fields[0] != 'Z' and int(fields[3]) == session:
            found.append(int(status.parent.name))
    return found


def serve(path: str, python: str) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    spare_configs_their_time()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print('ready', flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leaves no zombies
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:  # the tests have ended
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _attend(connection, python)
                os._exit(0)
            connection.close()


def _attend(connection: socket.socket, python: str) -> None:
    """In a process of its own, beside the program's: a parent learns the status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(connection, 2**20, 3)
    while not message.endswith(b'\n'):
        message += connection.recv(2**20)
    pid = os.fork()
    if pid == 0:
        connection.close()
        os._exit(_run(streams, python, **json.loads(message)))
    for stream in streams:
        os.close(stream)
    connection.sendall(b'%d\n' % pid)
    status = _wait(pid, connection)
    if status is None:
        os.kill(pid, signal.SIGTERM)
    else:
        connection.sendall(b'%d\n' % status)


def _wait(pid: int, connection: socket.socket) -> int | None:
    """The exit status; None if who has asked for the program is gone."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if select.select([connection], [], [], 0.01)[0]:
            return None


def _run(
    streams: list[int],
    python: str,
    words: list[str],
    cwd: str,
    environment: dict[str, str],
    max_file: int | None = None,
) -> int:
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if max_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file, max_file))
    sys.executable = python
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 0
    try:
        _run_python(words)
    except SystemExit as stop:
        if stop.code is not None:
            status = stop.code if isinstance(stop.code, int) else 1
        if not isinstance(stop.code, int | None):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _run_python(words: list[str]) -> None:
    """What `python WORDS` does, of a module or a file."""
    words = [word for i, word in enumerate(words) if word != '-u' or i > 1]
    is_module = words[0] == '-m'
    sys.argv = words[is_module:]
    path = os.environ.get('PYTHONPATH', '').split(os.pathsep)
    sys.path[:1] = ['' if is_module else os.path.dirname(words[0]), *path]
    if is_module:
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        # multiprocessing would look for it where the server was started.
        runpy.run_path(os.path.abspath(words[0]), run_name='__main__')


if __name__ == '__main__':
    serve(*sys.argv[1:])
