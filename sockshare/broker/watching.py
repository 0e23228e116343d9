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
from collections.abc import Callable, Iterable, Mapping
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
#: Looks at one process in a row, where gates are dropped all the time; then it waits for its next turn.
_TRIES = 3
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


class _Look(NamedTuple):
    """What a look at one process has found."""

    entries: list[epoll.Registration]
    refused: PermissionError | None
    cost: float  # seconds of a processor


class _Watched:
    __slots__ = (
        "entries",
        "examined",
        "large",
        "looked",
        "names",
        "pid",
        "process",
        "program",
        "since",
        "start",
        "workers",
    )

    def __init__(self, pid: int, start: int, process: str, program: str, now: float) -> None:
        self.pid = pid
        self.start = start
        self.process = process
        self.program = program
        self.names: dict[str, bool] = {}  # whether it has registered
        self.entries: list[epoll.Registration] = []
        self.large: set[tuple[int, int]] = set()  # epolls, by process and descriptor
        self.workers: frozenset[tuple[int, int]] = frozenset()  # who was seen to have registered, with the inode
        self.since = self.looked = now
        self.examined = False  # whether it can be kept


class Watching:
    """The processes; made in the running loop.

    Args:
        is_gate: Whether an entry is in a gate: those are not theirs.
        dropped: How many gates have been dropped so far.
        seen: Called for each registration that is there, at each look.
        examine: Called with the pid and name of a process, and its sockets, once it has had a second to start, and
            after each look at it that is refused.
    """

    def __init__(
        self,
        observer: Observer,
        is_gate: Callable[[epoll.Registration], bool],
        dropped: Callable[[], int],
        seen: Callable[[Seen], None],
        examine: Callable[[int, str, list[str]], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._observer = observer
        self._is_gate = is_gate
        self._dropped = dropped
        self._seen = seen
        self._examine = examine
        self._watched: dict[int, _Watched] = {}
        self._turn = 0
        self._starting: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._looks: set[asyncio.Task[float]] = set()

    def add(self, pid: int, start: int, process: str, program: str, names: Iterable[str]) -> None:
        """The managed process *pid* may register the sockets *names* from now on."""
        watched = self._watched.get(pid)
        if watched is None or watched.start != start:
            watched = self._watched[pid] = _Watched(pid, start, process, program, self._loop.time())
        new = [name for name in names if name not in watched.names]
        watched.names.update(dict.fromkeys(new, False))
        if new:
            watched.since = self._loop.time()
            # At once: whoever dies next has been looked at, and its workers are known.
            look = self._loop.create_task(self._look(watched))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
        self._look_soon()
        if self._checking is None:
            self._checking = self._loop.create_task(self._check())

    def look_now(self, pid: int) -> None:
        """Look at *pid* here and now, as long as the broker does not serve yet: it may die at any moment."""
        _all(self._watched[pid], self._observer.descriptors(self._watched[pid].names))

    def close(self) -> None:
        """Look at nobody any more."""
        for task in (self._starting, self._checking, *self._looks):
            if task is not None:
                task.cancel()
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

    def workers(self, pid: int, name: str) -> Callable[[], set[int]]:
        """Who else than *pid*, which has died, had registered the socket *name* when its tree was looked at last.

        To be called in the worker's thread: such a look may be on its way there.
        """
        watched, inode = self._watched.get(pid), self._observer.inode(name)
        return lambda: {who for who, its in watched.workers if its == inode and who != pid} if watched else set()

    def entries(self, pid: int, name: str) -> list[epoll.Registration]:
        """The registrations of the socket *name* in the process tree of *pid*, as they were seen last."""
        watched = self._watched.get(pid)
        inode = self._observer.inode(name)
        return [] if watched is None else [entry for entry in watched.entries if entry.inode == inode]

    def _look_soon(self) -> None:
        if self._starting is None:
            self._starting = self._loop.create_task(self._look_at_starting())

    async def _look_at_starting(self) -> None:
        cost = 0.0
        while True:
            await asyncio.sleep(max(_LOOK_EVERY, cost * (1 - _SHARE) / _SHARE))
            starting, cost = self._still_starting(), 0.0
            if not starting:
                break
            for one in starting:
                cost += await self._look(one)
        self._starting = None

    def _still_starting(self) -> list[_Watched]:
        since = self._loop.time() - _STARTS_FOR
        return [one for one in self._watched.values() if not all(one.names.values()) and one.since > since]

    async def _check(self) -> None:
        await asyncio.sleep(_CHECK_EVERY)
        while self._watched:
            settled = list(self._watched.values())
            first, self._turn = self._turn % len(settled), 0
            cost = 0.0
            for at, one in enumerate(settled[first:] + settled[:first]):
                if not one.examined and self._loop.time() - one.since >= _CHECK_EVERY:
                    one.examined = True
                    try:
                        self._examine(one.pid, one.process, list(one.names))
                    except Exception:
                        log.exception("%s: can't look at pid %d", one.process, one.pid)
                whole = not at or cost < _WHOLE_WITHIN
                if whole:
                    self._turn = first + at + 1
                cost += await self._look(one, whole=whole)
            await asyncio.sleep(_CHECK_EVERY)
        self._checking = None

    async def _look(self, one: _Watched, *, whole: bool = True) -> float:
        """Look at every epoll of its process tree, or at those known; the seconds of a processor that it took."""
        now = self._loop.time()
        sockets = self._observer.descriptors(one.names)
        cost = 0.0
        try:
            for _ in range(_TRIES):
                dropped = self._dropped()
                look = await self._observer.worker.do(_all if whole else _known, one, sockets)
                cost += look.cost
                if self._watched.get(one.pid) is not one:
                    break
                # What was in a gate that has been dropped meanwhile would be taken for the process's own: look again.
                if dropped == self._dropped():
                    self._take(one, look, now, whole=whole)
                    break
        except Exception:
            log.exception("%s: can't look at pid %d", one.process, one.pid)
            return 0.0
        return cost

    def _take(self, one: _Watched, look: _Look, now: float, *, whole: bool) -> None:
        if look.refused is not None:
            log.debug("pid %d: %s", one.pid, look.refused)
            one.examined &= self._loop.time() - one.since < _CHECK_EVERY
            if not whole:
                return  # it has dropped its user since
        unnoticed = 0.0
        if whole:
            unnoticed, one.looked = now - one.looked, now
        one.entries = [entry for entry in look.entries if not whole or not self._is_gate(entry)]
        self._tell(one, unnoticed)

    def _tell(self, one: _Watched, unnoticed: float) -> None:
        for name in list(one.names):
            inode = self._observer.inode(name)
            mine = [entry for entry in one.entries if entry.inode == inode]
            if not mine:
                continue
            one.names[name] = True
            armed = any(entry.armed for entry in mine)
            self._seen(Seen(name, one.pid, one.start, one.process, one.program, armed, unnoticed))


# In the worker's thread. Of what is watched, `large` and `workers` are theirs.


def _all(one: _Watched, sockets: Mapping[int, int]) -> _Look:
    began = time.thread_time()
    found: list[epoll.Registration] = []
    refused = None
    for pid in processes.tree(one.pid):
        try:
            for epfd in epoll.epolls(pid):
                found += _read(one, pid, epfd, sockets)
        except ProcessLookupError as error:
            log.debug("pid %d: %s", pid, error)
        except PermissionError as error:
            refused = error
    if found:  # of one that has just died nothing is found, and its workers live on
        one.workers = frozenset((entry.pid, entry.inode) for entry in found)
    return _Look(found, refused, time.thread_time() - began)


def _known(one: _Watched, sockets: Mapping[int, int]) -> _Look:
    began = time.thread_time()
    found: list[epoll.Registration] = []
    refused = None
    try:
        for pid, epfd in dict.fromkeys((entry.pid, entry.epfd) for entry in one.entries):
            found += _read(one, pid, epfd, sockets)
    except PermissionError as error:
        refused = error
    return _Look(found, refused, time.thread_time() - began)


def _read(one: _Watched, pid: int, epfd: int, sockets: Mapping[int, int]) -> list[epoll.Registration]:
    if (pid, epfd) in one.large:
        known = [entry for entry in one.entries if (entry.pid, entry.epfd) == (pid, epfd)]
        if known and all(epoll.present(entry, sockets[entry.inode]) for entry in known):
            return known
        one.large.discard((pid, epfd))
    entries, count = epoll.entries_of(pid, epfd, sockets)
    if count > _LARGE:
        one.large.add((pid, epfd))
    return entries
