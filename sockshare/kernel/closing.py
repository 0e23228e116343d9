"""Close what strangers have sent, or may have sent, without waiting for it.

close(2) of a connection with ``SO_LINGER`` takes as long as whoever set it likes (socket(7)), and so does closing a
socket in whose queue such a connection waits, if nobody else has it. A process that exits waits for neither.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from .descriptors import SO_PASSRIGHTS

#: The most threads that close at the same time; what is beyond them waits.
MOST = 256

_lock = threading.Lock()
_waiting: deque[tuple[Callable[[], object], threading.Event]] = deque()
_threads = 0


def apart(work: Callable[[], object]) -> threading.Event:
    """Have *work*, which may take for ever, done in a thread that nobody waits for.

    Returns:
        An event that is set when it is done. An `OSError` that it raises is passed over; it may raise nothing else.
    """
    global _threads
    done = threading.Event()
    with _lock:
        _waiting.append((work, done))
        if _threads >= MOST:
            return done
        _threads += 1
    try:
        threading.Thread(target=_work, name="sockshare-close", daemon=True).start()
    except RuntimeError:  # there can be no more of them; the next call tries again
        with _lock:
            _threads -= 1
    return done


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

    Args:
        within: Seconds that the caller has, to see it closed.
    """
    if sock.family != socket.AF_UNIX or refuses_descriptors(sock):
        sock.close()
        return
    fd = sock.detach()
    if fd >= 0:
        apart(lambda: os.close(fd)).wait(within)


def refuses_descriptors(sock: socket.socket) -> bool:
    """Whether the kernel refuses descriptors that are sent to *sock* (``SO_PASSRIGHTS`` is off, Linux 6.16)."""
    try:
        return not sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS)
    except OSError:
        return False
