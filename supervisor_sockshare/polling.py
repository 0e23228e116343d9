"""supervisord's own poll loop, as the host's loop (`sockshare.host.loop.Loop`).

Descriptors are watched through ``asyncore.socket_map``, which supervisord looks into before each poll. Timers come from
a wrapper of the poller, which shortens its sleep of a second to the next of them. Nothing here may raise: an exception
out of ``readable()`` or the poller ends supervisord and orphans what it runs.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

from supervisor.medusa import asyncore_25 as asyncore

log = logging.getLogger(__name__)

#: Turns of the loop without a sleep that bring a process from its death to its next start: the pidfd, the burial, the
#: transition.
_TURNS = 4


class _Watch:
    """What supervisord sees of one descriptor."""

    __slots__ = ("fd", "on_read", "on_write")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.on_read: Callable[[], object] | None = None
        self.on_write: Callable[[], object] | None = None

    def readable(self) -> bool:
        return self.on_read is not None

    def writable(self) -> bool:
        return self.on_write is not None

    def handle_read_event(self) -> None:
        _call(self.on_read)

    def handle_write_event(self) -> None:
        _call(self.on_write)

    def handle_error(self) -> None:
        # supervisord's own book-keeping of a descriptor that the callback has just closed.
        log.debug("loop: descriptor %d is gone", self.fd)

    def close(self) -> None:
        """Nothing: some plugins close whatever they find in the map."""


class _Timer:
    """See `sockshare.host.loop.Timer`."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class PollLoop:
    """The loop; it needs `attach` for each poller that supervisord makes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._timers: list[tuple[float, int, _Timer]] = []
        self._count = itertools.count()
        self._turns = 0

    def attach(self, poller: Any) -> None:
        """Have *poller* wake for our timers; a second time changes nothing."""
        if getattr(poller, "knows_sockshare", False):
            return
        original = poller.poll

        def poll(timeout: float) -> Any:
            try:
                timeout = self._sleep(timeout)
            except Exception:
                log.exception("loop: can't tell when the next timer is due")
            found = original(timeout)
            _call(self._run_due)
            return found

        poller.poll = poll
        poller.knows_sockshare = True

    def hurry(self) -> None:
        """Let the loop turn at once, as often as a death needs to be followed by a start."""
        self._turns = _TURNS

    def _sleep(self, timeout: float) -> float:
        if self._turns > 0:
            self._turns -= 1
            return 0.0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._timers:
            return max(0.0, min(timeout, self._timers[0][0] - self._clock()))
        return timeout

    def _run_due(self) -> None:
        now = self._clock()
        due = []
        # Those that are added meanwhile wait for the next turn, as in any loop.
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            callback, timer.callback = timer.callback, None
            _call(callback)

    # The loop of a host.

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> None:
        self._watch(fd).on_read = callback

    def remove_reader(self, fd: int, /) -> None:
        watch = asyncore.socket_map.get(fd)
        if isinstance(watch, _Watch):
            watch.on_read = None
            self._drop(watch)

    def add_writer(self, fd: int, callback: Callable[[], object], /) -> None:
        self._watch(fd).on_write = callback

    def remove_writer(self, fd: int, /) -> None:
        watch = asyncore.socket_map.get(fd)
        if isinstance(watch, _Watch):
            watch.on_write = None
            self._drop(watch)

    def call_later(self, delay: float, callback: Callable[[], object], /) -> _Timer:
        timer = _Timer(callback)
        heapq.heappush(self._timers, (self._clock() + delay, next(self._count), timer))
        return timer

    def _watch(self, fd: int) -> _Watch:
        watch = asyncore.socket_map.get(fd)
        if not isinstance(watch, _Watch):
            watch = asyncore.socket_map[fd] = _Watch(fd)
        return watch

    def _drop(self, watch: _Watch) -> None:
        if watch.on_read is None and watch.on_write is None:
            asyncore.socket_map.pop(watch.fd, None)

    def descriptors(self) -> list[int]:
        """Those that are watched."""
        return [fd for fd, watch in asyncore.socket_map.items() if isinstance(watch, _Watch)]


def _call(callback: Callable[[], object] | None) -> None:
    if callback is None:
        return
    try:
        callback()
    except Exception:
        log.exception("host: a callback failed; going on")
