"""Wakes the siblings of a process that died with a wake-up of theirs.

Of several processes that wait with EPOLLEXCLUSIVE the kernel wakes one for each connection. If that one dies before it
accepts, the connection waits until the next one arrives, although all the others are idle. So after a death it is
looked whether something waits on a socket that all may have; if nobody takes it, those who live are told of it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable
from functools import partial

from sockshare.core.errors import NotPermitted
from sockshare.kernel import epoll, queues
from sockshare.kernel.queues import Waiting

from .observer import Observer

log = logging.getLogger(__name__)

#: Seconds after a death at which is looked: what stands from one look to the next is stranded.
_LOOKS = (0.005, 0.03, 0.15)
#: Seconds after which a reminder is taken away.
_DELIVERED_WITHIN = 0.5


class Siblings:
    """Made in the running loop.

    Args:
        live: The managed processes that may have the socket of a name.
    """

    def __init__(self, observer: Observer, live: Callable[[str], Iterable[int]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._observer = observer
        self._looking: set[str] = set()
        self._live = live
        #: How often something was found stranded.
        self.rescued = 0

    def look_after(self, name: str, fd: int) -> None:
        """A process that had the socket has died."""
        if name not in self._looking and not self._observer.impossible:
            self._looking.add(name)
            sock = socket.socket(fileno=os.dup(fd))
            self._loop.call_later(_LOOKS[0], self._look, name, sock, queues.NOTHING, 0)

    def _look(self, name: str, sock: socket.socket, before: Waiting, look: int) -> None:
        waiting = queues.NOTHING
        try:
            waiting = queues.look(sock)
            if before.amount and waiting.amount and not waiting.was_taken_from(before):
                self._wake(name, sock)
        except (OSError, NotPermitted) as error:
            log.warning("%s: can't look after what waits: %s", name, error)
        except Exception:
            log.exception("%s: can't look after what waits", name)
        if waiting.amount and look + 1 < len(_LOOKS):
            self._loop.call_later(_LOOKS[look + 1] - _LOOKS[look], self._look, name, sock, waiting, look + 1)
        else:
            sock.close()
            self._looking.discard(name)

    def _wake(self, name: str, sock: socket.socket) -> None:
        fd, pids = os.dup(sock.fileno()), list(self._live(name))
        self._observer.worker.do(self._remind, name, fd, pids).add_done_callback(partial(self._reminded, name, fd))

    def _remind(self, name: str, fd: int, pids: Iterable[int]) -> list[epoll.Registration]:
        found = [entry for pid in pids for entry in self._observer.registrations(pid, [name])]
        reminded = []
        for entry in found:
            try:
                if entry.armed and epoll.remind(entry, fd):
                    reminded.append(entry)
            except (OSError, NotPermitted) as error:
                log.warning("%s: can't look after what waits: %s", name, error)
        return reminded

    def _reminded(self, name: str, fd: int, done: asyncio.Future[list[epoll.Registration]]) -> None:
        reminded = done.result()
        if reminded:
            self.rescued += 1
            log.info("%s: what waits was stranded by a death; %d registrations were reminded", name, len(reminded))
        self._loop.call_later(_DELIVERED_WITHIN, self._observer.worker.do, self._end, reminded, fd)

    def _end(self, reminded: Iterable[epoll.Registration], fd: int) -> None:
        for entry in reminded:
            try:
                epoll.end_reminder(entry, fd)
            except (OSError, NotPermitted) as error:
                log.debug("pid %d: %s", entry.pid, error)
        os.close(fd)
