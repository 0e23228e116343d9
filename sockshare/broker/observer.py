"""What the kernel shows and lets us do of the event registrations of the shared sockets."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping

from sockshare.core.errors import NotPermitted
from sockshare.core.readiness import Evidence
from sockshare.kernel import epoll, epoll_rights, peers, processes, waits
from sockshare.kernel.parking import Parking

from .roster import Managed

log = logging.getLogger(__name__)

#: How often, and at which distance in seconds, a process is looked at that is not seen to wait for anything.
_LOOKS, _APART = 20, 0.002
#: Seconds to wait for a thread of a process without a registration to be held; later ones are held as they come.
_PARKED_WITHIN = 0.03
#: Why a process can't be suspended that waits in no epoll.
NO_EPOLL = "it has no event registration: it reads by select, poll or a blocking accept"


class Observer:
    """Watches the registrations of the sockets *shared*: name to (inode, our descriptor)."""

    def __init__(self, shared: Mapping[str, tuple[int, int]]) -> None:
        self._shared = shared
        self._names = {inode: name for name, (inode, _) in shared.items()}
        #: Who was seen to wait on a socket without an epoll: pid to start time and inodes.
        self._waited: dict[int, tuple[int, frozenset[int]]] = {}
        self._parkings: dict[int, Parking] = {}
        #: Why nothing can be suspended here at all, or None.
        self.impossible = epoll_rights.probe()
        if self.impossible:
            log.warning("registrations can't be suspended: %s", self.impossible)

    def inode(self, name: str) -> int:
        """The inode of the socket *name*; -1 if there is none."""
        return self._shared[name][0] if name in self._shared else -1

    def descriptors(self, sockets: Iterable[str]) -> dict[int, int]:
        """Our descriptor of each of *sockets*, by its inode."""
        return dict(self._shared[name] for name in sockets if name in self._shared)

    def registrations(self, pid: int, sockets: Iterable[str]) -> list[epoll.Registration]:
        """The registrations of *sockets* in the process tree of *pid*; none where they can't be seen."""
        try:
            return epoll.registrations(pid, self._inodes(sockets))
        except (NotPermitted, ProcessLookupError) as error:
            log.debug("pid %d: %s", pid, error)
            return []

    def evidence(self, managed: Managed, sockets: Collection[str], *, patient: bool = False) -> Evidence:
        """What there is to see of *managed* now.

        Args:
            patient: Look for some 40 ms if nothing is seen: a process that serves is not always seen to wait.
        """
        said = frozenset((managed.ready,)) if managed.ready in ("client", "notify") else frozenset()
        inodes = {entry.inode for entry in self.registrations(managed.pid, sockets)}
        if len(inodes) < len(set(self._inodes(sockets))):
            inodes |= self.waited(managed.pid, sockets)
            for _ in range(_LOOKS if patient else 0):
                if inodes:
                    break
                time.sleep(_APART)
                inodes |= self.waited(managed.pid, sockets)
        return Evidence(said, frozenset(self._names[inode] for inode in inodes))

    def waited(self, pid: int, sockets: Iterable[str]) -> frozenset[int]:
        """The inodes of *sockets* on which the process tree of *pid* was seen to wait, now or before, without epoll."""
        try:
            start = peers.start_time(pid)
            before = self._waited.get(pid)
            seen = before[1] if before is not None and before[0] == start else frozenset()
            wanted = set(self._inodes(sockets))
            if not wanted <= seen:
                seen |= waits.waiting(pid, wanted)
        except (PermissionError, ProcessLookupError):
            return frozenset()
        if seen:
            self._waited = {known: facts for known, facts in self._waited.items() if processes.alive(known)}
            self._waited[pid] = (start, seen)
        return seen & wanted

    def refusal(self, pid: int) -> str | None:
        """Why the registrations of *pid* can't be suspended; None if they can."""
        return self.impossible or epoll_rights.permitted(pid)

    def suspend(self, pid: int, sockets: Iterable[str]) -> str:
        """Suspend the registrations of *sockets* in the process tree of *pid*; what came of it, in words."""
        if self.impossible:
            return f"not suspended: {self.impossible}"
        try:
            count = epoll.suspend_all(pid, self.descriptors(sockets))
            if count:
                return f"{count} registration{'s' if count > 1 else ''} of pid {pid} suspended"
            if self.registrations(pid, sockets):
                return f"the registrations of pid {pid} are suspended"
            return self._park(pid, sockets)
        except ProcessLookupError:
            return "not suspended: it has died"
        except (NotPermitted, OSError) as error:
            log.warning("pid %d: %s", pid, error)
            return f"not suspended: {error}"

    def _park(self, pid: int, sockets: Iterable[str]) -> str:
        parking = self._parkings.get(pid)
        if parking is None:
            parking = self._parkings[pid] = Parking(pid, self.descriptors(sockets))
        parking.wait(_PARKED_WITHIN)
        if parking.held:
            return f"the thread of pid {pid} that waits for connections is held: {NO_EPOLL}"
        why = parking.refusal or "no thread of it is seen that waits for nothing else"
        return f"cannot be suspended: {NO_EPOLL}; {why}"

    def not_kept(self, pid: int, sockets: Iterable[str]) -> str:
        """Why *pid*, which has no registration of *sockets*, can't be suspended; and what is done instead."""
        try:
            wanted = set(self._inodes(sockets))
            found = [wait for one in processes.tree(pid) for wait in waits.waits(one, wanted)]
        except PermissionError:
            found = []
        if not found:  # it is busy just now
            return f"cannot be suspended: {NO_EPOLL}"
        instead = "is held instead"
        if any(wait.others for wait in found):
            instead = "serves connections too and can't be held, so let its program drain itself on its stop signal"
        elif any(wait.pipes for wait in found):
            instead += ", while its process has no connection"
        return f"cannot be suspended: {NO_EPOLL}; the thread that waits {instead}"

    def holds(self, pid: int) -> bool:
        """Whether a thread of *pid* is held as it has no registration."""
        return pid in self._parkings and self._parkings[pid].held > 0

    def is_held_back(self, pid: int, sockets: Collection[str]) -> bool:
        """Whether *pid* takes no new connection, after `suspend`: nothing of it waits for one on *sockets*."""
        if any(entry.armed for entry in self.registrations(pid, sockets)):
            return False
        return self.holds(pid) or not self.waited(pid, sockets)

    def let_go(self, pid: int) -> None:
        """Let go the threads of *pid* that are held as it has no registration: it has to meet its stop signal."""
        parking = self._parkings.pop(pid, None)
        if parking is not None:
            parking.release()

    def resume(self, pid: int, sockets: Iterable[str]) -> int:
        """Resume the registrations of *sockets* in the process tree of *pid*; how many there were."""
        self.let_go(pid)
        if self.impossible:
            return 0
        try:
            return epoll.resume_all(pid, self.descriptors(sockets))
        except ProcessLookupError:
            return 0
        except (NotPermitted, OSError) as error:
            log.error("pid %d: %s", pid, error)
            return 0

    def end_of(self, pid: int) -> str:
        """How *pid*, which has just died, ended; in words for after its name."""
        try:
            status = processes.exit_code(pid)
        except (OSError, ValueError):
            return "has died"
        if status & 0x7F:
            return f"was killed by signal {status & 0x7F}"
        return f"exited with status {status >> 8}"

    def _inodes(self, sockets: Iterable[str]) -> list[int]:
        return [self._shared[name][0] for name in sockets if name in self._shared]
