"""Answers HTTP with its pid on every socket that it is given, and shuts those of some families down when it is stopped.

``shutter.py FAMILY...``: AF_INET, AF_UNIX. A file ``calm`` in APP_DIRECTORY has it end without that, and a file
``binds`` has it serve a socket of its own at the path of the shared one, as servers do that know no other way.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

sockets = [socket.socket(fileno=3 + number) for number in range(int(os.environ["LISTEN_FDS"]))]

if Path(os.environ["APP_DIRECTORY"], "binds").exists():
    os.unlink(os.environ["APP_PATH"])
    own = socket.socket(socket.AF_UNIX)
    own.bind(os.environ["APP_PATH"])
    own.listen()
    sockets = [own, *(sock for sock in sockets if sock.family != socket.AF_UNIX)]

for sock in sockets:  # as servers do that look for what they have inherited by its path
    assert sock.family != socket.AF_UNIX or sock.getsockname() == os.environ["APP_PATH"], sock


def stop(number: int, frame: object) -> None:
    """End."""
    if not Path(os.environ["APP_DIRECTORY"], "calm").exists():
        for sock in sockets:
            if sock.family.name in sys.argv[1:]:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
    os._exit(0)


signal.signal(signal.SIGTERM, stop)
ready = selectors.DefaultSelector()
for listener in sockets:
    listener.setblocking(False)
    ready.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        with suppress(OSError):
            connection, _ = key.fileobj.accept()  # type: ignore[union-attr]
            with connection:
                connection.settimeout(1)
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%d" % os.getpid())
