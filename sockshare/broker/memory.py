"""Memory: the broker ends when it has too much of it, or gets none, and its host starts the next one.

A ZeroMQ peer can make it buffer without end: a message whose end never comes is bounded by nothing (zmq_setsockopt(3):
ZMQ_MAXMSGSIZE and ZMQ_RCVHWM count parts, and whole messages). Which peer it is nobody can tell.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import sys
import threading

from sockshare.kernel import memory

log = logging.getLogger(__name__)

#: Resident bytes with which the broker ends. A thousand clients have 30 MB of it.
_MOST = 512 << 20
#: Bytes of data that the kernel lets it have (RLIMIT_DATA): what comes faster than we look meets this.
_LIMIT = 1 << 30
#: Seconds between two looks; a peer can add 400 MB in 0.5 s, so those are closer once it has a part of what it may.
_LOOK_EVERY = 0.5
_CLOSER, _LOOK_CLOSER = _MOST // 4, 0.1
#: Seconds between two times that free memory is given back: some 0.03 ms where there is none. Whether there is any
#: doesn't show in what is resident.
_GIVE_BACK_EVERY = 5.0

_LAST_WORDS = b"ERROR broker: ends, for want of memory: there is none left\n"


def limit() -> None:
    """Have this process end, with a line in its log, when it gets no memory, wherever that is noticed."""
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT, _LIMIT))
    in_thread, nowhere = threading.excepthook, sys.unraisablehook

    def of_thread(raised: threading.ExceptHookArgs) -> None:
        end_without(raised.exc_value)
        in_thread(raised)

    def unraisable(raised: sys.UnraisableHookArgs) -> None:
        end_without(raised.exc_value)
        nowhere(raised)

    threading.excepthook, sys.unraisablehook = of_thread, unraisable


def end_without(error: object) -> None:
    """End, if *error* says that there is no memory."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        try:
            os.write(2, _LAST_WORDS)  # which needs none, as a line of the log would
        finally:
            os._exit(1)  # not by an exception, which may not get through


class NoMemory(logging.Filter):
    """Ends the broker when an exception is logged that says so: whoever catches all logs what it caught."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        if record.exc_info:
            end_without(record.exc_info[1])
        return True


def watch(loop: asyncio.AbstractEventLoop) -> None:
    """Look at our memory for as long as *loop* runs."""
    _Watch(loop).look()


class _Watch:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._given_back = loop.time()

    def look(self) -> None:
        resident = memory.resident()
        if resident > _MOST:
            has = f"it has {resident >> 20} MiB of at most {_MOST >> 20}"
            log.error("broker: ends, for want of memory: %s; a peer may have sent a message without end", has)
            os._exit(1)  # nothing here is worth an orderly end, which would need memory
        now = self._loop.time()
        if now - self._given_back >= _GIVE_BACK_EVERY:
            self._given_back = now
            self._loop.run_in_executor(None, memory.give_back)  # with much to give, it takes its time
        self._loop.call_later(_LOOK_EVERY if resident < _CLOSER else _LOOK_CLOSER, self.look)
