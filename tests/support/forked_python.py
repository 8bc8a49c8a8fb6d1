"""`python` of a `ToolServer`, which has the imports done: python SOCKET WORDS...

It is the program that the server forks, to whoever started it: the same folder,
environment and streams, the signals that end one, and the exit status.
"""

import json
import os
import signal
import socket
import sys

path, *words = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(path)
    request = dict(words=words, cwd=os.getcwd(), environment=dict(os.environ))
    message = json.dumps(request).encode() + b'\n'
    socket.send_fds(connection, [message], [0, 1, 2])
    answers = connection.makefile()
    pid = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(answers.readline())
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
