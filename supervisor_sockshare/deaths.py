"""The deaths of supervisord's children, noticed when they happen: its own loop looks once a second."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from sockshare.host.loop import Loop, guarded
from sockshare.kernel.peers import pidfd_open

log = logging.getLogger(__name__)


class Deaths:
    """Watches processes by their pidfds, and calls *died* with the pid of each that has ended, once."""

    def __init__(self, loop: Loop, died: Callable[[int], object]) -> None:
        self._loop = loop
        self._call = died
        self._pidfds: dict[int, int] = {}

    def watch(self, pid: int) -> None:
        """Watch *pid*; a second time changes nothing.

        Raises:
            ProcessLookupError: No such process.
            OSError: As pidfd_open(2).
        """
        if pid not in self._pidfds:
            self._pidfds[pid] = pidfd = pidfd_open(pid)
            self._loop.add_reader(pidfd, lambda: self._died(pid, pidfd))

    def close(self) -> None:
        """Watch none any more."""
        for pid, pidfd in list(self._pidfds.items()):
            self._unwatch(pid, pidfd)

    def descriptors(self) -> list[int]:
        """All that are open."""
        return list(self._pidfds.values())

    def _unwatch(self, pid: int, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)  # first: it stays readable
        if self._pidfds.pop(pid, None) is not None:
            os.close(pidfd)

    @guarded(log)
    def _died(self, pid: int, pidfd: int) -> None:
        self._unwatch(pid, pidfd)
        self._call(pid)
