"""``python -m benchmarks.workers KIND ...``: servers that say their pid to who connects, each the shortest there is.

All do the same with a connection, and take one at each wake-up; they differ only in how they learn of it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
from collections.abc import Callable

_ALONE = int(select.EPOLLIN | select.EPOLLEXCLUSIVE)
_ANYBODY = int(select.EPOLLIN)


def serve(listener: socket.socket, watched: int, events: int, may: Callable[[], bool] | None = None) -> None:
    """Answer for ever: wait for *events* of *watched*, ask whether we *may*, and take one connection."""
    me = b"%d\n" % os.getpid()
    poll = select.epoll()
    poll.register(watched, events)
    while True:
        poll.poll()
        if may is not None and not may():
            continue
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        with connection:
            try:
                connection.send(me)
            except OSError:  # it has gone
                pass


def inherited(word: str) -> socket.socket:
    """The listener whose descriptor number is *word*, never waiting in accept(2)."""
    listener = socket.socket(fileno=int(word))
    listener.setblocking(False)
    return listener


def epoll(word: str) -> None:
    """A program that knows nothing of others."""
    listener = inherited(word)
    serve(listener, listener.fileno(), _ANYBODY)


def exclusive(word: str) -> None:
    """EPOLLEXCLUSIVE: the kernel wakes one of those that wait, mostly."""
    listener = inherited(word)
    serve(listener, listener.fileno(), _ALONE)


def reuseport(word: str) -> None:
    """A listener of its own on a port that others have too: the kernel spreads connections by their addresses."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", int(word)))
    listener.listen(4096)
    listener.setblocking(False)
    serve(listener, listener.fileno(), _ANYBODY)


def flock(word: str, path: str) -> None:
    """Serve only while we have the lock on the file *path* (flock(2)), which the kernel hands on when one dies."""
    listener = inherited(word)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    serve(listener, listener.fileno(), _ANYBODY)


def heavy(word: str, path: str) -> None:
    """As `flock`, in a process that has attached: with ZeroMQ in it, the kernel needs longer to end it."""
    import sockshare

    with sockshare.attach():
        flock(word, path)


def gate(name: str) -> None:
    """The library: a loop of our own, once the registration is held; from then on the gate is all there is to watch."""
    import sockshare

    with sockshare.attach() as share:
        listener = share.socket(name)
        # Also while it is not held: then the gate is silent.
        with share.registration(name) as registration:
            serve(listener, registration.fileno(), _ANYBODY, registration.waiting)


def line(name: str) -> None:
    """The same loop, in line from its start, as the library's server for asyncio is: that is a wake-up less."""
    import time

    import sockshare

    with sockshare.attach() as share:
        listener = share.socket(name)
        registration = share.claim(name)
        while not registration.in_line:
            time.sleep(0.01)
        serve(listener, registration.fileno(), _ANYBODY, registration.waiting)


def streams(name: str) -> None:
    """The library for asyncio: a server of streams, in line from its start."""
    import asyncio

    from sockshare import aio

    me = b"%d\n" % os.getpid()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(me)
        writer.close()

    async def main() -> None:
        async with await aio.start_server(answer, name):
            await asyncio.get_running_loop().create_future()

    asyncio.run(main())


if __name__ == "__main__":
    kinds: list[Callable[..., None]] = [epoll, exclusive, reuseport, flock, heavy, gate, line, streams]
    {one.__name__: one for one in kinds}[sys.argv[1]](*sys.argv[2:])
