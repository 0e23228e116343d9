"""Watches that clients reach the shared sockets, mends what can be mended, and says what was done, and by whom.

The kernel tells at once that a socket was shut down (epoll(7): EPOLLHUP, EPOLLRDHUP), and that a file has lost or got a
name (inotify(7)); a look once a second finds the rest. Nothing of it is on the way of a connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sockshare.core.command_lines import in_words
from sockshare.core.errors import ManagerError
from sockshare.core.reachability import culprit
from sockshare.core.spec import SocketSpec
from sockshare.kernel import binding, holders, listeners, processes, queues, reach
from sockshare.kernel.file_watch import FileWatch
from sockshare.kernel.reach import Fault, Kind, Load, Place

from .holders import Holders, source
from .hostlink import ANSWER_WITHIN, HostLink
from .roster import Known, Roster

log = logging.getLogger(__name__)

#: Seconds between looks at all sockets, and so many of them at a time.
_LOOK_EVERY = 1.0
_AT_ONCE = 8
#: A look at a queue is not followed by the next before so many times what it took: of a port with 10,000 connections
#: that is 50 ms, for all of them are listed.
_SPARING = 50
#: Seconds at least between two mendings of one socket: who breaks it without end costs no more than this.
_MEND_EVERY = 0.01
#: Seconds that a server has to bind a path that it has removed: published again meanwhile, it would keep it from that.
_BINDS_WITHIN = 0.01
#: Seconds that a process has to end in that shut a socket down; and by which its death may have been heard of before.
_ENDS_WITHIN, _HEARD_BEFORE = 0.5, 0.05
#: Seconds between two searches through all processes for who did something to one socket.
_SEEK_EVERY = 5.0
#: Seconds at most that a search for who has a path's socket open takes.
_SEEK_FOR = 0.5
#: Seconds between two requests to the host to make a socket anew.
_RENEW_EVERY = 10.0
#: Seconds for which circusd, once asked, is taken to have a socket still.
_CONFIRMED_FOR = 0.1
_DEATHS = 256


class Mended(NamedTuple):
    """The last mending of one socket."""

    at: float  # time.monotonic()
    what: str  # that was wrong
    how: str  # it was mended


@dataclass
class _Watched:
    spec: SocketSpec
    inode: int
    fd: int
    place: Place | None = None
    placed: bool = False  # whether `place` is known
    backlog: int = binding.BACKLOG
    fault: Fault | None = None
    since: float = 0.0
    by: str = ""  # who brought the last fault about
    refusal: str = ""  # why the fault is not mended
    unseen: str = "it was not looked at yet"
    mended: Mended | None = None
    times: int = 0  # it was mended
    waiting: frozenset[object] = frozenset()  # the clients that have waited since then
    waiting_since: float = 0.0
    queue_at: float = 0.0  # no close look at its queue before
    asked: float = -_RENEW_EVERY  # when the host was asked to make it anew
    sought: float = -_SEEK_EVERY  # when all processes were looked through for who did it
    confirmed: float = -_CONFIRMED_FOR  # when the manager was asked whether it has it still


class Told(NamedTuple):
    """What a reload says of its sockets in the end."""

    unreachable: str  # "": clients reach them
    mended: str  # while it ran


class Guard:
    """The guard of the sockets *shared* (name to inode and descriptor), by their *specs*; made in the running loop.

    Args:
        manager: What the hello says of the manager.
        replaced: The pids of processes that reloads are taking out of service.
        uses: Whether the section of a program names a socket.
    """

    def __init__(
        self,
        link: HostLink,
        roster: Roster,
        others: Holders,
        specs: Mapping[str, SocketSpec],
        shared: Mapping[str, tuple[int, int]],
        *,
        manager: Mapping[str, Any],
        replaced: Callable[[], Iterable[int]],
        uses: Callable[[str, str], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._roster = roster
        self._others = others
        self._manager = manager
        self._replaced = replaced
        self._uses = uses
        self._watched = {name: _Watched(specs[name], inode, fd) for name, (inode, fd) in shared.items()}
        self._by_fd = {one.fd: name for name, one in self._watched.items()}
        self._deaths: deque[tuple[float, str, str]] = deque(maxlen=_DEATHS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._epoll = select.epoll()
        self._files: FileWatch | None = None
        self._renaming = False  # a look at the places is about to come
        try:
            self._files = FileWatch()
            self._loop.add_reader(self._files.fileno(), self._renamed)
        except OSError as error:
            log.warning("guard: can't be told of files: %s; they are looked at each second", error)
        for one in self._watched.values():
            if one.spec.guard != "off":
                # Edge-triggered: what can't be mended stays so, and is told once.
                self._epoll.register(one.fd, select.EPOLLRDHUP | select.EPOLLET)
        self._loop.add_reader(self._epoll.fileno(), self._shut_down)
        self._run(self._look_at_all())

    # What others ask.

    def died(self, known: Known) -> None:
        """A known process has died."""
        managed = known.managed
        if managed is not None:
            name = f"{managed.name} (pid {known.identity.pid})"
            self._deaths.append((self._loop.time(), managed.program, name))
        for name, one in self._watched.items():
            if one.fault is not None and one.fault.kind is Kind.TAKEN:  # by a socket of its own, perhaps
                self._look(name)

    def facts(self, name: str) -> dict[str, Any]:
        """What `core.reachability` judges of the socket *name*, and what is shown of its mendings; looked up now."""
        one = self._watched[name]
        self._look(name)
        mended = None
        if one.mended is not None:
            ago = round(self._loop.time() - one.mended.at, 1)
            mended = {"times": one.times, "last": _sentence(one.mended, one.by), "ago": ago}
        unseen = "guard = off" if one.spec.guard == "off" else one.unseen
        stalled = self._loop.time() - one.waiting_since if one.waiting else 0.0
        return {"fault": self._fault(one), "unseen": unseen, "mended": mended, "stalled": stalled}

    def load(self, name: str) -> Load:
        """What waits on the socket *name*."""
        with _as_socket(self._watched[name].fd) as sock:
            return reach.load(sock)

    def tell(self, names: Iterable[str], since: float) -> Told:
        """What there is to be said of the sockets *names*, at the end of a reload that began at *since*."""
        faults, mendings = [], []
        for name in sorted(names):
            one = self._watched.get(name)
            if one is None:
                continue
            self._look(name)
            if fault := self._fault(one):
                faults.append(f"clients don't reach {name}: {fault}")
            if one.mended is not None and one.mended.at >= since:
                mendings.append(f"{name}: {_sentence(one.mended, one.by)}")
        return Told("; ".join(faults), "; ".join(mendings))

    def _fault(self, one: _Watched) -> str:
        if one.fault is None:
            return ""
        parts = [f"{one.fault.sentence}{_by(one.by)}", one.refusal or _advice(one.fault)]
        return "; ".join(part for part in parts if part)

    # What happens.

    async def _look_at_all(self) -> None:
        while True:
            for at, (name, one) in enumerate(self._watched.items(), 1):
                self._look(name)
                await self._look_at_queue(one)
                if at % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(_LOOK_EVERY)

    async def _look_at_queue(self, one: _Watched) -> None:
        """Note who waits on a listener. The oldest is the first to be accepted: so if one client stays, nobody is."""
        with _as_socket(one.fd) as sock:
            if not (listeners.is_listening(sock) and queues.is_readable(sock)):
                one.waiting = frozenset()
                return
            now = self._loop.time()
            if now < one.queue_at:
                return
            try:
                found, seconds = await self._others.worker.do(_look_closely, sock)
            except OSError:
                return
            one.queue_at = now + _SPARING * seconds
        clients = found.clients - {0}  # of unix clients those that are closed: they can't be told from one another
        stayed = one.waiting & clients
        if not stayed:
            one.waiting_since = now
        one.waiting = stayed or clients

    def _shut_down(self) -> None:
        for fd, _ in self._epoll.poll(0):
            self._look(self._by_fd[fd])

    def _renamed(self) -> None:
        assert self._files is not None
        self._files.read()
        if not self._renaming:  # who changes a file without end costs one look each time
            self._renaming = True
            self._loop.call_later(_BINDS_WITHIN, self._look_at_places)

    def _look_at_places(self) -> None:
        self._renaming = False
        for name, one in self._watched.items():
            if one.place is not None:
                self._look(name)

    def _look(self, name: str) -> None:
        """Look whether clients reach the socket *name*, and mend what keeps them from it."""
        one = self._watched[name]
        if one.spec.guard == "off":
            return
        with _as_socket(one.fd) as sock:
            try:
                self._find_place(one, sock)
                found = reach.look(sock, one.place)
            except (LookupError, OSError) as error:
                one.unseen = str(error)
                return
            one.unseen = ""
            if found is None:
                self._well(name, one, sock)
                return
            if one.fault is None or one.fault.kind is not found.kind:
                one.since, one.by = self._loop.time(), ""
                if found.kind in (Kind.SHUT_DOWN, Kind.CONNECTED):
                    one.by = culprit(self._ended(name, one, found), self._stopping(name), (), complete=False)
                    self._run(self._find_culprit(name, one, found, one.since))
                elif found.kind is Kind.TAKEN and one.place is not None:
                    self._run(self._find_owner(one, one.place))
            one.fault = found
            if one.spec.guard != "repair":
                one.refusal = "guard = warn, so it is left as it is"
            elif found.kind is Kind.GONE and self._may_be_given_up(name, one):
                pass
            elif one.mended is not None and self._loop.time() - one.mended.at < _MEND_EVERY:
                self._loop.call_later(_MEND_EVERY, self._look, name)
            else:
                self._mend(name, one, sock, found)

    def _find_place(self, one: _Watched, sock: socket.socket) -> None:
        if not one.placed:
            path = one.spec.address.partition("://")[2] if sock.family == socket.AF_UNIX else ""
            one.place = reach.place(sock, path, f"/proc/{self._manager['pid']}/cwd")
            one.placed = True

    def _well(self, name: str, one: _Watched, sock: socket.socket) -> None:
        if one.fault is not None:
            log.info("%s: clients reach it again", name)
            one.fault, one.refusal = None, ""
        queue = listeners.queue(sock)
        if queue is not None:
            one.backlog = queue.backlog
        if one.place is not None and one.spec.guard == "repair":
            try:
                reach.keep_name(one.place)
                if self._files is not None:
                    self._files.add(one.place.path)
            except OSError as error:
                log.debug("%s: %s", name, error)  # said when the name is needed

    def _may_be_given_up(self, name: str, one: _Watched) -> bool:
        """Whether circusd may have closed the socket, and its path with it: it tells nobody, so it is asked first."""
        now = self._loop.time()
        if self._manager["kind"] != "circus" or 0 <= now - one.confirmed < _CONFIRMED_FOR:
            return False
        if one.confirmed < now:
            one.confirmed = now + ANSWER_WITHIN  # so long no other question
            self._run(self._confirm(name, one))
        return True

    async def _confirm(self, name: str, one: _Watched) -> None:
        try:
            # If it has, the host learns of it by that, and the next broker is told.
            await self._link.ask("processes")
        except ManagerError as error:
            log.debug("%s: %s", name, error)
        one.confirmed = self._loop.time()
        self._look(name)

    def _mend(self, name: str, one: _Watched, sock: socket.socket, fault: Fault) -> None:
        try:
            how = _mend(one, sock, fault)
            is_mended = bool(how) and reach.look(sock, one.place) is None
        except (LookupError, OSError) as error:
            one.refusal = f"can't mend it: {getattr(error, 'strerror', None) or error}"
            return
        if not is_mended:
            self._make_anew(name, one, fault)
            return
        one.mended, one.fault, one.refusal = Mended(one.since, fault.sentence, how), None, ""
        one.times += 1
        log.warning("%s: %s", name, _sentence(one.mended, one.by))

    def _make_anew(self, name: str, one: _Watched, fault: Fault) -> None:
        """Have the host make a socket that nothing else mends, if that takes nothing from anybody."""
        now = self._loop.time()
        if fault.kind is Kind.TAKEN or now - one.asked < _RENEW_EVERY:
            return
        if self._manager["kind"] == "circus":
            one.refusal = "only circusd can make it anew: circusctl restart"
            return
        one.refusal = "it is made anew: a `sockshare reload` of its programs gives it to them"
        one.asked = now
        self._run(self._renew(name, one))

    async def _renew(self, name: str, one: _Watched) -> None:
        try:
            # It ends us with that, and the next broker is given the new one.
            await self._link.ask("renew", socket=name, inode=one.inode)
        except ManagerError as error:
            one.refusal = str(error)
            log.error("%s: %s", name, self._fault(one))

    # Who it was.

    def _ended(self, name: str, one: _Watched, fault: Fault) -> list[str]:
        """Who ended as *fault* was brought about, of the processes that have the socket by their section."""
        # Of a shutdown the kernel tells at once.
        before = _HEARD_BEFORE if fault.kind is Kind.SHUT_DOWN else _LOOK_EVERY
        return [
            who
            for at, program, who in self._deaths
            if -before <= at - one.since <= _ENDS_WITHIN and self._uses(program, name)
        ]

    def _stopping(self, name: str) -> list[str]:
        found = [self._roster.managed(pid) for pid in self._replaced()]
        return [f"{one.name} (pid {one.pid})" for one in found if one is not None and self._uses(one.program, name)]

    async def _find_culprit(self, name: str, one: _Watched, fault: Fault, moment: float) -> None:
        stopping = self._stopping(name)
        names, complete = await self._find_holders(one)
        await asyncio.sleep(max(0.0, moment + _ENDS_WITHIN - self._loop.time()))
        if one.since == moment:
            one.by = culprit(self._ended(name, one, fault), stopping, names, complete=complete)
            log.warning("%s: %s%s", name, fault.sentence, _by(one.by))

    async def _find_holders(self, one: _Watched) -> tuple[list[str], bool]:
        """Who has the socket open, and whether those are all; not each time where it is broken without end."""
        now = self._loop.time()
        if now - one.sought < _SEEK_EVERY:
            return [], False
        one.sought = now
        scan = await self._others.look()
        known = source(self._manager["pid"])
        holding = [pid for pid, inodes in scan.holders.items() if one.inode in inodes and pid not in known]
        names = await self._others.worker.do(lambda: [self._named(pid) for pid in sorted(holding)])
        return names, not scan.refused and not scan.unfinished

    async def _find_owner(self, one: _Watched, at: Place) -> None:
        owners = await self._others.worker.do(_owners, at.path)
        one.by = f"of {', '.join(owners)}" if owners else ""

    def _named(self, pid: int) -> str:
        managed = self._roster.managed(pid)
        return f"{managed.name} (pid {pid})" if managed is not None else _shown(pid)

    def _run(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("guard: it has a bug", exc_info=error)


def _advice(fault: Fault) -> str:
    if fault.kind is not Kind.TAKEN:
        return ""
    if fault.sentence.endswith(reach.NO_SOCKET):
        return "remove it"
    return "end what has bound it, and let it take its socket from sockshare"


def _mend(one: _Watched, sock: socket.socket, fault: Fault) -> str:
    """Mend *fault*; how it was done, or "" if it was not."""
    if fault.kind is Kind.SHUT_DOWN:
        revived = reach.listen_again(sock, one.backlog)
        return "revived; connections that waited were reset" if revived else ""
    if fault.kind is Kind.CONNECTED:
        reach.disconnect(sock)
        return "disconnected"
    return "published again" if one.place is not None and reach.publish_again(one.place) else ""


def _look_closely(sock: socket.socket) -> tuple[queues.Waiting, float]:
    """Who waits on *sock*, and the seconds of a processor that it took to see."""
    began = time.thread_time()
    return queues.look(sock, closely=True), time.thread_time() - began


def _sentence(mended: Mended, by: str) -> str:
    return f"{mended.what}{_by(by)}; {mended.how}"


def _by(who: str) -> str:
    return f" {who}" if who.startswith(("as ", "by ", "of ")) else f" ({who})" if who else ""


def _owners(path: str) -> list[str]:
    """Who has the socket at *path* open."""
    inodes = reach.sockets_at(path)
    found = holders.scan(inodes, _SEEK_FOR).holders if inodes else {}
    return [_shown(pid) for pid in sorted(found)]


def _shown(pid: int) -> str:
    try:
        return f"pid {pid} ({in_words([os.path.basename(word) for word in processes.command(pid)[:1]])})"
    except OSError:
        return f"pid {pid}"


@contextmanager
def _as_socket(fd: int) -> Iterator[socket.socket]:
    """*fd*, which stays open. Not a duplicate: there may be no room for one, and then too it has to be looked at."""
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()
