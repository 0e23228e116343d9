"""Close what strangers have sent, or may have sent, without waiting for it.

close(2) of a connection with ``SO_LINGER`` takes as long as whoever set it likes (socket(7)), and so does closing a
socket in whose queue such a connection waits, if nobody else has it. A process that exits waits for neither; one that
is forked meanwhile and has a copy of the descriptor waits for the last of them as we do.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from .descriptors import SO_PASSRIGHTS

#: The most threads that close at the same time; what is beyond them waits.
MOST = 256
#: Seconds that `close` waits at most for a thread to begin, and between two looks whether it has.
_BEGUN_WITHIN = 0.1
_LOOK = 0.001

_Task = tuple[Callable[[], object], threading.Event]

_lock = threading.Lock()
_waiting: deque[_Task] = deque()
_threads = 0


def apart(work: Callable[[], object]) -> threading.Event:
    """Have *work*, which may take for ever, done in a thread that nobody waits for.

    Returns:
        An event that is set when it is done. An `OSError` that it raises is passed over; it may raise nothing else.
    """
    task = (work, threading.Event())
    _enlist(task)
    return task[1]


def _enlist(task: _Task) -> bool:
    """Have a thread do *task*; whether there is one. Where none can be had it waits for the next call."""
    global _threads
    with _lock:
        _waiting.append(task)
        if _threads >= MOST:
            return True
        _threads += 1
    try:
        threading.Thread(target=_work, name="sockshare-close", daemon=True).start()
    except RuntimeError:  # there are too many already, or Python ends (3.12.0 and 3.12.1: its exit functions have none)
        with _lock:
            _threads -= 1
            return _threads > 0
    return True


def _work() -> None:
    global _threads
    while True:
        with _lock:
            if not _waiting:
                _threads -= 1
                return
            work, done = _waiting.popleft()
        with suppress(OSError):  # close(2): the descriptor is released whatever the error says
            work()
        done.set()


def unfinished() -> int:
    """How many of the works that were given to `apart` are not done."""
    return _threads + len(_waiting)


def close(sock: socket.socket, within: float = 0.0) -> None:
    """Close *sock*, which others could send descriptors to: at once where the kernel has refused them, else `apart`.

    On return it is no descriptor of ours, so that no process that is forked from then on has a copy of it; except when
    more than `MOST` are being closed, or no thread can be had and something waits in it.

    Args:
        within: Seconds that the caller has, to see it closed.
    """
    if sock.family != socket.AF_UNIX or refuses_descriptors(sock):
        sock.close()
        return
    fd = sock.detach()
    if fd < 0:
        return
    inode = os.fstat(fd).st_ino
    task = (lambda: os.close(fd), threading.Event())
    if not _enlist(task) and not _is_readable(fd):
        with suppress(ValueError):  # another call has had a thread since, which has it
            _waiting.remove(task)
            os.close(fd)
            return
    until = time.monotonic() + _BEGUN_WITHIN
    while not task[1].wait(_LOOK) and _is(fd, inode) and unfinished() <= MOST and time.monotonic() < until:
        pass
    task[1].wait(within)


def _is(fd: int, inode: int) -> bool:
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def refuses_descriptors(sock: socket.socket) -> bool:
    """Whether the kernel refuses descriptors that are sent to *sock* (``SO_PASSRIGHTS`` is off, Linux 6.16)."""
    try:
        return not sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS)
    except OSError:
        return False
