"""Watches the processes that may register a shared socket whose registration not all may have.

No kernel event tells of another process's EPOLL_CTL_ADD. So a process is looked at every few milliseconds from its
start until it has registered, and after that once a second: the epolls known of it, and all of them by turns. Reading
an epoll with thousands of entries holds its program up; of such a one it is only asked whether the entry is there
(`epoll.present`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from sockshare.kernel import epoll, processes

from .observer import Observer

log = logging.getLogger(__name__)

#: Seconds between two looks at a process that starts: as long as its registration may go unnoticed.
_LOOK_EVERY = 0.01
#: The share of one processor that looking at starting processes may take.
_SHARE = 0.2
#: Seconds for which a process that does not register is looked at so often.
_STARTS_FOR = 120.0
#: Seconds between two looks at a process that has registered, and of the processor's time in which some of them are
#: looked through whole: one in 0.1 to 0.2 ms, by turns.
_CHECK_EVERY, _WHOLE_WITHIN = 1.0, 0.001
#: Entries of an epoll above which it is not read periodically.
_LARGE = 500


class Seen(NamedTuple):
    """A process's registration of a socket, found."""

    socket: str
    pid: int
    start: int
    process: str
    program: str
    armed: bool
    unnoticed: float  # seconds since the look before, in which it was not there


class _Watched:
    __slots__ = ("entries", "examined", "large", "looked", "names", "pid", "process", "program", "since", "start")

    def __init__(self, pid: int, start: int, process: str, program: str, now: float) -> None:
        self.pid = pid
        self.start = start
        self.process = process
        self.program = program
        self.names: dict[str, bool] = {}  # whether it has registered
        self.entries: list[epoll.Registration] = []
        self.large: set[tuple[int, int]] = set()  # epolls, by process and descriptor
        self.since = self.looked = now
        self.examined = False  # whether it can be kept


class Watching:
    """The processes; made in the running loop.

    Args:
        is_gate: Whether an entry is in a gate: those are not theirs.
        seen: Called for each registration that is there, at each look.
        examine: Called with the pid and name of a process, and its sockets, once it has had a second to start, and
            after each look at it that is refused.
    """

    def __init__(
        self,
        observer: Observer,
        is_gate: Callable[[epoll.Registration], bool],
        seen: Callable[[Seen], None],
        examine: Callable[[int, str, list[str]], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._observer = observer
        self._is_gate = is_gate
        self._seen = seen
        self._examine = examine
        self._watched: dict[int, _Watched] = {}
        self._turn = 0
        self._starting: asyncio.Handle | None = None
        self._checking: asyncio.TimerHandle | None = None

    def add(self, pid: int, start: int, process: str, program: str, names: Iterable[str]) -> None:
        """The managed process *pid* may register the sockets *names* from now on."""
        watched = self._watched.get(pid)
        if watched is None or watched.start != start:
            watched = self._watched[pid] = _Watched(pid, start, process, program, self._loop.time())
        new = [name for name in names if name not in watched.names]
        watched.names.update(dict.fromkeys(new, False))
        if new:
            watched.since = self._loop.time()
        self._look_soon()
        if self._checking is None:
            self._checking = self._loop.call_later(_CHECK_EVERY, self._check)

    def close(self) -> None:
        """Look at nobody any more."""
        for timer in (self._starting, self._checking):
            if timer is not None:
                timer.cancel()
        self._watched.clear()

    def remove(self, pid: int) -> list[epoll.Registration]:
        """*pid* has died; what its process tree had registered when it was seen last."""
        watched = self._watched.pop(pid, None)
        return [] if watched is None else watched.entries

    def settle(self, pid: int, name: str) -> None:
        """*pid* need not be looked at any more for its registration of the socket *name*, but now and then."""
        watched = self._watched.get(pid)
        if watched is not None and name in watched.names:
            watched.names[name] = True

    def forget(self, pid: int, name: str) -> None:
        """*pid* has taken its registration of the socket *name* back: it is looked at as if it had just started."""
        watched = self._watched.get(pid)
        if watched is not None and name in watched.names:
            watched.names[name] = False
            watched.entries = [entry for entry in watched.entries if entry.inode != self._observer.inode(name)]
            watched.since = self._loop.time()
            self._look_soon()

    def entries(self, pid: int, name: str) -> list[epoll.Registration]:
        """The registrations of the socket *name* in the process tree of *pid*, as they were seen last."""
        watched = self._watched.get(pid)
        inode = self._observer.inode(name)
        return [] if watched is None else [entry for entry in watched.entries if entry.inode == inode]

    def _look_soon(self) -> None:
        if self._starting is None:
            self._starting = self._loop.call_soon(self._look_at_starting)

    def _look_at_starting(self) -> None:
        self._starting = None
        now = self._loop.time()
        starting = [
            one for one in self._watched.values() if not all(one.names.values()) and now - one.since < _STARTS_FOR
        ]
        if not starting:
            return
        began = time.thread_time()
        for one in starting:
            try:
                self._look(one)
            except Exception:
                log.exception("%s: can't look at pid %d", one.process, one.pid)
        cost = time.thread_time() - began
        self._starting = self._loop.call_later(max(_LOOK_EVERY, cost * (1 - _SHARE) / _SHARE), self._look_at_starting)

    def _check(self) -> None:
        self._checking = None
        if not self._watched:
            return
        settled = list(self._watched.values())
        first, self._turn = self._turn % len(settled), 0
        until = time.thread_time() + _WHOLE_WITHIN
        for at, one in enumerate(settled[first:] + settled[:first]):
            try:
                if not one.examined and self._loop.time() - one.since >= _CHECK_EVERY:
                    one.examined = True
                    self._examine(one.pid, one.process, list(one.names))
                if not at or time.thread_time() < until:
                    self._turn = first + at + 1
                    self._look(one)
                else:
                    self._look_at_known(one)
            except Exception:
                log.exception("%s: can't look at pid %d", one.process, one.pid)
        self._checking = self._loop.call_later(_CHECK_EVERY, self._check)

    def _look(self, one: _Watched) -> None:
        """Look at every epoll of its process tree."""
        now = self._loop.time()
        unnoticed, one.looked = now - one.looked, now
        found: list[epoll.Registration] = []
        for pid in processes.tree(one.pid):
            try:
                for epfd in epoll.epolls(pid):
                    found += self._read(one, pid, epfd)
            except ProcessLookupError as error:
                log.debug("pid %d: %s", pid, error)
            except PermissionError as error:
                self._can_not_look(one, error)
        one.entries = [entry for entry in found if not self._is_gate(entry)]
        self._tell(one, unnoticed)

    def _look_at_known(self, one: _Watched) -> None:
        found: list[epoll.Registration] = []
        try:
            for pid, epfd in dict.fromkeys((entry.pid, entry.epfd) for entry in one.entries):
                found += self._read(one, pid, epfd)
        except PermissionError as error:  # it has dropped its user since
            self._can_not_look(one, error)
            return
        one.entries = found
        self._tell(one, 0.0)

    def _can_not_look(self, one: _Watched, error: PermissionError) -> None:
        log.debug("pid %d: %s", one.pid, error)
        one.examined &= self._loop.time() - one.since < _CHECK_EVERY

    def _read(self, one: _Watched, pid: int, epfd: int) -> list[epoll.Registration]:
        sockets = self._observer.descriptors(one.names)
        if (pid, epfd) in one.large:
            known = [entry for entry in one.entries if (entry.pid, entry.epfd) == (pid, epfd)]
            if known and all(epoll.present(entry, sockets[entry.inode]) for entry in known):
                return known
            one.large.discard((pid, epfd))
        entries = epoll.entries(pid, epfd)
        if len(entries) > _LARGE:
            one.large.add((pid, epfd))
        return [entry for entry in entries if entry.inode in sockets]

    def _tell(self, one: _Watched, unnoticed: float) -> None:
        for name in list(one.names):
            inode = self._observer.inode(name)
            mine = [entry for entry in one.entries if entry.inode == inode]
            if not mine:
                continue
            one.names[name] = True
            armed = any(entry.armed for entry in mine)
            self._seen(Seen(name, one.pid, one.start, one.process, one.program, armed, unnoticed))
