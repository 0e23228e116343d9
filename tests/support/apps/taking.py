"""Takes connections or datagrams and writes each down: ``taking.py HOW``.

SIGUSR1 has it take its registration back, SIGUSR2 register (again), whether it is its turn or not. SIGTERM ends it,
and first takes the registration back. A file ``halt-PID`` in APP_DIRECTORY has the process stop itself once, as by
SIGSTOP, just before it takes something. TAKING_START are the seconds that it takes to start.

HOW is ``epoll``: an unmodified program below ``sockshare exec``, level-triggered; ``edge``, ``exclusive``: the same,
edge-triggered or with EPOLLEXCLUSIVE; ``gate``: one that uses the library. The socket is ``web``; a datagram begins
with its number, 4 bytes, and a connection gets this process's pid as an HTTP answer.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.support.ledger import Ledger

_ALWAYS = lambda: True  # noqa: E731


class Taker:
    """One process."""

    def __init__(self, sock: socket.socket, may: Callable[[], bool]) -> None:
        self.sock = sock
        self.may = may
        self.ledger = Ledger(os.environ["APP_DIRECTORY"])
        self.is_stream = sock.type == socket.SOCK_STREAM

    def take(self) -> None:
        """Take everything that is there."""
        while self.may():
            self._halt()
            self.ledger.taking(True)
            try:
                if not self._one():
                    return
            except BlockingIOError:
                self.ledger.taking(False)
                return

    def _halt(self) -> None:
        path = Path(os.environ["APP_DIRECTORY"], f"halt-{os.getpid()}")
        if path.exists():
            path.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)

    def _one(self) -> bool:
        if not self.is_stream:
            data, _ = self.sock.recvfrom(2048)
            self.ledger.answered(self.ledger.took(int.from_bytes(data[:4], "big")))
            return True
        connection, client = self.sock.accept()
        place = self.ledger.took(client[1])
        with connection:
            connection.settimeout(5)
            try:
                if connection.recv(4096):
                    body = b'{"version": "v1", "pid": %d}' % os.getpid()
                    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
                    connection.sendall(head + body)
            except OSError:  # the client has gone
                pass
        self.ledger.answered(place)
        return True


FLAGS = {"edge": select.EPOLLET, "exclusive": select.EPOLLEXCLUSIVE}


def drop() -> None:
    """Become the user TAKING_UID, if there is one: who starts this may be able to read what that one can't."""
    uid = int(os.environ.get("TAKING_UID", "0"))
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def hide() -> None:
    """With TAKING_UID, be what only a tracer may look into, and stay the user that the broker knows (prctl(2))."""
    if "TAKING_UID" in os.environ:
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def serve(watched: int, taker: Taker, flags: int) -> None:
    """Until SIGTERM."""
    told, telling = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(telling)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    with select.epoll() as poll:
        poll.register(told, select.EPOLLIN)
        register(poll, watched, flags)
        while True:
            for fd, _events in poll.poll():
                if fd != told:
                    taker.take()
                    continue
                for said in os.read(told, 16):
                    if said == signal.SIGUSR2:
                        register(poll, watched, flags)
                    else:
                        unregister(poll, watched)
                    if said == signal.SIGTERM:
                        return


def register(poll: select.epoll, fd: int, flags: int) -> None:
    """Whether it is there or not."""
    try:
        poll.register(fd, flags)
    except FileExistsError:
        poll.modify(fd, flags)


def unregister(poll: select.epoll, fd: int) -> None:
    """Whether it is there or not."""
    with suppress(FileNotFoundError):
        poll.unregister(fd)


def main() -> None:
    """As *HOW* says."""
    how = sys.argv[1]
    time.sleep(float(os.environ.get("TAKING_START", "0")))
    if how == "gate":
        import sockshare

        with sockshare.attach() as share:
            sock = share.socket("web")
            taker = Taker(sock, _ALWAYS)
            hide()
            with share.registration("web") as registration:
                taker.may = registration.waiting
                serve(registration.fileno(), taker, select.EPOLLIN)
        return
    with socket.socket(fileno=3) as sock:
        taker = Taker(sock, _ALWAYS)
        drop()
        serve(3, taker, select.EPOLLIN | FLAGS.get(how, 0))


if __name__ == "__main__":
    main()
