"""Processes of another user that do one thing and wait: ``python -m tests.support.strangers UID GROUP DEED ...``.

Each writes a line when it has done it (JSON), and ends with its standard input.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any

from sockshare.kernel import processes

NOBODY = 65534
SOMEBODY = 54321
READY = "READY=1\nSTATUS=forged"


def say(text: str, *paths: str) -> int:
    """Send *text* to each; how many took it."""
    return sum(_send(path, text.encode()) for path in paths)


def linger(count: str, *paths: str) -> int:
    """Send each socket *count* datagrams, each with a connection that blocks its last close(2) for an hour; how many
    were taken."""
    taken = 0
    for path in paths:
        for _ in range(int(count)):
            connection = lingering()
            taken += _send(path, b"FDSTORE=1", [connection.fileno()])
            connection.close()  # blocks where it is the last, so the peer's end has to be ours to end it
    return taken


def flood(seconds: str, *paths: str) -> int:
    """Send ``STATUS=`` to all of them for so long, never waiting; how many were taken."""
    until, taken, number = time.monotonic() + float(seconds), 0, 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        print(json.dumps("begun"), flush=True)
        while time.monotonic() < until:
            for path in paths:
                number += 1
                try:
                    sock.sendto(b"STATUS=%d" % number, path)
                    taken += 1
                except OSError:
                    continue
    return taken


def pack(kind: str, count: str, path: str) -> int:
    """Connect *count* times to the listener at *path*, and send each such a connection."""
    for _ in range(int(count)):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if kind == "seqpacket" else socket.SOCK_STREAM)
        sock.connect(path)
        _KEPT.append(sock)
        connection = lingering()
        try:
            _rights(sock, b"H", [connection.fileno()])
        except OSError:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        connection.close()
    return int(count)


def notify(text: str, path: str) -> None:
    """Send *text*, as sd_notify(3) does: wait where the queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(path)
        sock.send(text.encode())


def lead() -> int:
    """Be a managed process: each line of input says how to send a text to a socket, and who of us does it."""
    print(json.dumps("leads"), flush=True)
    for line in sys.stdin:
        how, text, path = json.loads(line)
        if how == "self":
            notify(text, path)
            continue
        child = os.fork()
        if child == 0:
            if how.startswith("daemon") and os.fork():
                os._exit(0)
            if how == "daemon of another user":
                os.setpgid(0, 0)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            notify(text, path)
            if how in ("child that stays", "daemon that stays", "daemon of another user"):
                sys.stdin.close()
                os.closerange(0, 3)
                while True:
                    signal.pause()
            os._exit(0)
        if how != "child that stays":
            os.waitpid(child, 0)
    return 0


DEEDS: dict[str, Callable[..., int]] = {one.__name__: one for one in (say, linger, flood, pack, lead)}
_KEPT: list[socket.socket] = []


def lingering() -> socket.socket:
    """A connection with more to send than its peer, which stays open, takes; its last close(2) blocks for an hour."""
    listener = socket.create_server(("127.0.0.1", 0))
    connection = socket.socket()
    connection.connect(listener.getsockname())
    peer, _ = listener.accept()
    listener.close()
    _KEPT.append(peer)
    connection.setblocking(False)
    try:
        while True:
            connection.send(b"x" * 65536)
    except BlockingIOError:
        pass
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return connection


def _send(path: str, text: bytes, fds: Sequence[int] = ()) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
            _rights(sock, text, fds)
        except OSError:
            if fds:  # what nobody took must not block us
                with socket.socket(fileno=os.dup(fds[0])) as refused:
                    refused.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
            return False
    return True


def _rights(sock: socket.socket, text: bytes, fds: Sequence[int]) -> None:
    sock.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


class Stranger:
    """One of them, which runs until it is closed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def done(self) -> Any:
        """What it says next of what it does; waits for that."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def tell(self, *words: str) -> None:
        """Say something to one that leads."""
        assert self.process.stdin is not None
        print(json.dumps(words), file=self.process.stdin, flush=True)

    def close(self) -> None:
        """End it, with those it left, and return when it is gone."""
        for pid in self._family():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout):
            _close(stream)
        self.process.wait()

    def _family(self) -> list[int]:
        """It, its descendants, and who is in a group or session of its own: its pid is not used again before `wait`."""
        found = set(processes.tree(self.pid))
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(ProcessLookupError):
                if self.pid in (os.getsid(int(name)), os.getpgid(int(name))):
                    found.add(int(name))
        return sorted(found)


def _close(stream: IO[str] | None) -> None:
    if stream is not None:
        stream.close()


@contextmanager
def strangers() -> Iterator[Callable[..., Stranger]]:
    """Start some: ``start(uid, deed, *arguments, group=None, session=False)``; none is left afterwards.

    Each is in the process group of the one who starts it, in *group*, in its own (0), or the leader of a session.
    """
    with ExitStack() as stack:

        def start(uid: int, deed: str, *arguments: object, group: int | None = None, session: bool = False) -> Stranger:
            place = "-" if group is None else str(group)
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(uid), place, deed, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=session,
            )
            stranger = Stranger(process)
            stack.callback(stranger.close)
            return stranger

        yield start


def main() -> None:
    """Become user UID in process group GROUP (-: that of the parent; 0: one of its own), do it, say so, and wait."""
    uid, group, deed, *arguments = sys.argv[1:]
    if int(uid) != os.geteuid():
        os.setgroups([])
        os.setresgid(int(uid), int(uid), int(uid))
        os.setresuid(int(uid), int(uid), int(uid))
    if group != "-":
        os.setpgid(0, int(group))
    print(json.dumps(DEEDS[deed](*arguments)), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
