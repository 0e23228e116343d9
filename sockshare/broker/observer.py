"""What the kernel shows and lets us do of the event registrations of the shared sockets.

The methods that return a future or a coroutine have their work done by the observer's own thread, one after the other
in the order of the calls. The others may take long, and are for such threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sockshare.core import ends
from sockshare.core.errors import NotPermitted
from sockshare.core.readiness import Evidence
from sockshare.kernel import epoll, epoll_rights, peers, processes, strike, waits
from sockshare.kernel.descriptors import close_all
from sockshare.kernel.parking import Parking

from .roster import Managed
from .worker import Worker

log = logging.getLogger(__name__)

#: How often, and at which distance in seconds, a process is looked at that is not seen to wait for anything.
_LOOKS, _APART = 20, 0.002
#: Seconds to wait for a thread of a process without a registration to be held; later ones are held as they come.
_PARKED_WITHIN = 0.03
#: How the kernel names a socket that is none of the shared ones: ``socket:[INODE]``; and so do we.
_OWN = "socket:["
#: Why a process can't be suspended that waits in no epoll.
NO_EPOLL = "it has no event registration: it reads by select, poll or a blocking accept"


class Facts(NamedTuple):
    """What is to be seen of one process and one socket."""

    registrations: list[epoll.Registration]
    not_kept: str | None  # why its registrations can't be kept from outside
    waited: bool  # whether it was seen to wait without a registration
    held: bool  # whether a thread of it is held
    owned: frozenset[int] | None  # the inodes of all sockets of its process tree; None: it may not be looked into
    unseen: str = ""  # why what it registers or waits for can't be seen, so that nothing here says nothing


class Observer:
    """Watches the registrations of the sockets *shared*: name to (inode, our descriptor).

    Attributes:
        worker: The thread of what reloads and lines ask; nobody else's work is to go before theirs.
    """

    def __init__(self, shared: Mapping[str, tuple[int, int]]) -> None:
        self.worker = Worker("observer")
        self._shared = shared
        #: Who was seen to wait on a socket without an epoll: pid to start time and inodes.
        self._waited: dict[int, tuple[int, frozenset[int]]] = {}
        self._parkings: dict[int, Parking] = {}
        #: Why nothing can be suspended here at all, or None.
        self.impossible = epoll_rights.probe()
        if self.impossible:
            log.warning("registrations can't be suspended: %s", self.impossible)

    def inode(self, name: str) -> int:
        """The inode of the socket *name*, also of one of `listeners`; -1 if there is none."""
        if name in self._shared:
            return self._shared[name][0]
        return int(name[8:-1]) if name.startswith(_OWN) else -1

    def descriptors(self, sockets: Iterable[str]) -> dict[int, int]:
        """Our descriptor of each of *sockets*, by its inode."""
        return dict(self._shared[name] for name in sockets if name in self._shared)

    def listeners(self, pid: int) -> tuple[str, ...]:
        """Names for the sockets that *pid* was given to accept on though its section names none, as an
        ``[fcgi-program:]`` is: that on its descriptor 0."""
        try:
            name = os.readlink(f"/proc/{pid}/fd/0")
            if not name.startswith(_OWN):
                return ()
            duplicate = strike.duplicate(pid, 0)
        except OSError as error:
            log.debug("pid %d: %s", pid, error)
            return ()
        with socket.socket(fileno=duplicate) as sock:
            return (name,) if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else ()

    @contextlib.contextmanager
    def _duplicates(self, pid: int, sockets: Iterable[str]) -> Iterator[dict[int, int]]:
        """A descriptor of each of *sockets*, by its inode: ours, or for a moment one of *pid*'s.

        For no longer: an ``[fcgi-program:]``'s socket is to be closed when its last process has ended.
        """
        names, borrowed = list(sockets), dict[int, int]()
        try:
            for inode in {self.inode(name) for name in names if name.startswith(_OWN)}:
                fd = processes.socket_descriptors(pid).get(inode)
                if fd is not None:  # else it has closed it
                    borrowed[inode] = strike.duplicate(pid, fd)
            yield {**self.descriptors(names), **borrowed}
        finally:
            close_all(borrowed.values())

    def registrations(self, pid: int, sockets: Iterable[str]) -> list[epoll.Registration]:
        """The registrations of *sockets* in the process tree of *pid*; none where they can't be seen."""
        try:
            return epoll.registrations(pid, self._inodes(sockets))
        except (NotPermitted, ProcessLookupError) as error:
            log.debug("pid %d: %s", pid, error)
            return []

    async def evidence(self, managed: Managed, sockets: Collection[str], *, patient: bool = False) -> Evidence:
        """What there is to see of *managed* now.

        Args:
            patient: Look for some 40 ms if nothing is seen: a process that serves is not always seen to wait.
        """
        inodes, unseen = await self.worker.do(self.look, managed.pid, sockets)
        for _ in range(_LOOKS if patient and self._inodes(sockets) else 0):
            if inodes:
                break
            await asyncio.sleep(_APART)
            inodes = await self.worker.do(self.waited, managed.pid, sockets)
        said = frozenset((managed.ready,)) if managed.ready in ("client", "notify") else frozenset()
        return Evidence(said, frozenset(name for name in sockets if self.inode(name) in inodes), unseen)

    def look(self, pid: int, sockets: Collection[str]) -> tuple[frozenset[int], str]:
        """The inodes of *sockets* that the process tree of *pid* has registered, or was seen to wait on; and why there
        may be more that can't be seen."""
        wanted, inodes, unseen = set(self._inodes(sockets)), frozenset[int](), ""
        try:
            inodes = frozenset(entry.inode for entry in epoll.registrations(pid, wanted))
        except NotPermitted as error:
            unseen = str(error)
        except ProcessLookupError:
            return inodes, ""
        if inodes >= wanted:
            return inodes, ""
        try:
            inodes |= self._waited_by(pid, wanted)
        except PermissionError as error:
            unseen = unseen or _blind(pid, error)
        return inodes, unseen or waits.unseen()

    def serving(self, pid: int, sockets: Iterable[str]) -> frozenset[tuple[int, int]]:
        """Those in the process tree of *pid* that have *sockets* registered, or wait on them now, each with its start;
        none where that can't be seen."""
        inodes = set(self._inodes(sockets))
        registered = {entry.pid for entry in self.registrations(pid, sockets)}
        try:
            tree = processes.identified_tree(pid)
            return frozenset(one for one in tree if one[0] in registered or waits.waits(one[0], inodes))
        except (PermissionError, ProcessLookupError):
            return frozenset()

    def waited(self, pid: int, sockets: Iterable[str]) -> frozenset[int]:
        """The inodes of *sockets* on which the process tree of *pid* was seen to wait, now or before, without epoll."""
        try:
            return self._waited_by(pid, set(self._inodes(sockets)))
        except PermissionError:
            return frozenset()

    def _waited_by(self, pid: int, wanted: set[int]) -> frozenset[int]:
        try:
            start = peers.start_time(pid)
            before = self._waited.get(pid)
            seen = before[1] if before is not None and before[0] == start else frozenset()
            if not wanted <= seen:
                seen |= waits.waiting(pid, wanted)
        except ProcessLookupError:
            return frozenset()
        if seen:
            for known in list(self._waited):  # another thread may be here too
                if not processes.alive(known):
                    self._waited.pop(known, None)
            self._waited[pid] = (start, seen)
        return seen & wanted

    def refusal(self, pid: int) -> str | None:
        """Why the registrations of *pid* can't be suspended; None if they can."""
        return self.impossible or epoll_rights.permitted(pid)

    def suspend(self, pid: int, sockets: Iterable[str]) -> asyncio.Future[str]:
        """Suspend the registrations of *sockets* in the process tree of *pid*; what came of it, in words."""
        names = list(sockets)
        return asyncio.ensure_future(self._suspended(names, self.worker.do(self._suspend, pid, names)))

    async def _suspended(self, sockets: Collection[str], work: asyncio.Future[str | Parking]) -> str:
        found = await work
        if isinstance(found, str):
            return found
        # Not in the worker's thread: others wait for that.
        await asyncio.get_running_loop().run_in_executor(None, found.wait, _PARKED_WITHIN)
        if found.held:
            return f"the thread of pid {found.pid} that waits for connections is held: {NO_EPOLL}"
        if not found.refusal and not await self.worker.do(self.waited, found.pid, sockets):
            return f"nothing to suspend: pid {found.pid} was not seen to wait for connections"
        why = found.refusal or "no thread of it is seen that waits for nothing else"
        return f"cannot be suspended: {NO_EPOLL}; {why}"

    def _suspend(self, pid: int, sockets: Collection[str]) -> str | Parking:
        if self.impossible:
            return f"not suspended: {self.impossible}"
        if not self._inodes(sockets):
            return "nothing to suspend: its section names no socket, so nobody looked"
        try:
            with self._duplicates(pid, sockets) as duplicates:
                count = epoll.suspend_all(pid, duplicates)
            if count:
                return f"{count} registration{'s' if count > 1 else ''} of pid {pid} suspended"
            if self.registrations(pid, sockets):
                return f"the registrations of pid {pid} are suspended"
            held = self.descriptors(sockets)
            if not held:
                return f"cannot be suspended: {NO_EPOLL}"
            if pid not in self._parkings:
                self._parkings[pid] = Parking(pid, held)
            return self._parkings[pid]
        except ProcessLookupError:
            return "not suspended: it has died"
        except (NotPermitted, OSError) as error:
            log.warning("pid %d: %s", pid, error)
            return f"not suspended: {error}"

    def facts(self, pid: int, sockets: Collection[str]) -> dict[str, Facts]:
        """What is to be seen of *pid* and each of *sockets*: /proc is gone through once for all of them."""
        unseen = ""
        try:
            registrations = epoll.registrations(pid, self._inodes(sockets))
        except ProcessLookupError:
            registrations = []
        except NotPermitted as error:
            registrations, unseen = [], str(error)
        refusal = self.refusal(pid)
        held, waited = self.holds(pid), self.waited(pid, sockets)
        owned = self.owned(pid)
        found: list[waits.Wait] = []
        inodes, blind = set(self._inodes(sockets)), ""
        if len({entry.inode for entry in registrations}) < len(inodes):
            blind = waits.unseen()
            try:
                found = [wait for one in processes.tree(pid) for wait in waits.waits(one, inodes)]
            except PermissionError as error:
                blind = _blind(pid, error)
        facts = {}
        for name in sockets:
            inode = self.inode(name)
            mine = [entry for entry in registrations if entry.inode == inode]
            why = refusal or _not_kept([wait for wait in found if inode in wait.sockets])
            shows = bool(mine) or inode in waited
            why_not = None if mine and refusal is None else why
            facts[name] = Facts(mine, why_not, inode in waited, held, owned, unseen or ("" if shows else blind))
        return facts

    def owned(self, pid: int) -> frozenset[int] | None:
        """The inodes of all sockets of the process tree of *pid*; None if it may not be looked into."""
        try:
            return frozenset().union(*map(_sockets, processes.tree(pid)))
        except PermissionError:
            return None

    def holds(self, pid: int) -> bool:
        """Whether a thread of *pid* is held as it has no registration."""
        parking = self._parkings.get(pid)
        return parking is not None and parking.held > 0

    def is_held_back(self, pid: int, sockets: Collection[str]) -> asyncio.Future[bool]:
        """Whether *pid* takes no new connection, after `suspend`: nothing of it waits for one on *sockets*."""
        return self.worker.do(self._is_held_back, pid, sockets)

    def _is_held_back(self, pid: int, sockets: Collection[str]) -> bool:
        if any(entry.armed for entry in self.registrations(pid, sockets)):
            return False
        return self.holds(pid) or not self.waited(pid, sockets)

    def let_go(self, pid: int) -> asyncio.Future[None]:
        """Let go the threads of *pid* that are held as it has no registration: it has to meet its stop signal."""
        return self.worker.do(self._let_go, pid)

    def _let_go(self, pid: int) -> None:
        parking = self._parkings.pop(pid, None)
        if parking is not None:
            parking.release()

    def resume(self, pid: int, sockets: Iterable[str]) -> asyncio.Future[int]:
        """Resume the registrations of *sockets* in the process tree of *pid*; how many there were."""
        return self.worker.do(self._resume, pid, list(sockets))

    def _resume(self, pid: int, sockets: Collection[str]) -> int:
        self._let_go(pid)
        if self.impossible:
            return 0
        try:
            with self._duplicates(pid, sockets) as duplicates:
                return epoll.resume_all(pid, duplicates)
        except ProcessLookupError:
            return 0
        except (NotPermitted, OSError) as error:
            log.error("pid %d: %s", pid, error)
            return 0

    def end_of(self, pid: int) -> str:
        """How *pid*, which has just died, ended; in words for after its name."""
        try:
            return ends.describe(processes.exit_code(pid))
        except (OSError, ValueError):
            return ends.describe(None)

    def _inodes(self, sockets: Iterable[str]) -> list[int]:
        return [inode for inode in map(self.inode, sockets) if inode >= 0]


def _blind(pid: int, error: PermissionError) -> str:
    return f"can't see what pid {pid} waits for: {error.strerror} ({error.filename})"


def _not_kept(found: Sequence[waits.Wait]) -> str:
    """Why a process without a registration can't be suspended, by what its threads wait for; what is done instead."""
    if not found:  # it is busy just now
        return f"cannot be suspended: {NO_EPOLL}"
    instead = "is held instead"
    if any(wait.others for wait in found):
        instead = "serves connections too and can't be held, so let its program drain itself on its stop signal"
    elif any(wait.pipes for wait in found):
        instead += ", while its process has no connection"
    return f"cannot be suspended: {NO_EPOLL}; the thread that waits {instead}"


def _sockets(pid: int) -> Iterable[int]:
    try:
        return processes.socket_descriptors(pid)
    except ProcessLookupError:
        return ()
    except PermissionError:
        if processes.alive(pid):  # a zombie's directory is root's
            raise
        return ()
