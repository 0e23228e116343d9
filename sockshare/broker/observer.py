"""What the kernel shows and lets us do of the event registrations of the shared sockets."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

from sockshare.core.errors import NotPermitted
from sockshare.core.readiness import Evidence
from sockshare.kernel import epoll, epoll_rights, processes

from .roster import Managed

log = logging.getLogger(__name__)


class Observer:
    """Watches the registrations of the sockets *shared*: name to (inode, our descriptor)."""

    def __init__(self, shared: Mapping[str, tuple[int, int]]) -> None:
        self._shared = shared
        self._names = {inode: name for name, (inode, _) in shared.items()}
        #: Why nothing can be suspended here at all, or None.
        self.impossible = epoll_rights.probe()
        if self.impossible:
            log.warning("registrations can't be suspended: %s", self.impossible)

    def registrations(self, pid: int, sockets: Iterable[str]) -> list[epoll.Registration]:
        """The registrations of *sockets* in the process tree of *pid*; none where they can't be seen."""
        try:
            return epoll.registrations(pid, self._inodes(sockets))
        except (NotPermitted, ProcessLookupError) as error:
            log.debug("pid %d: %s", pid, error)
            return []

    def evidence(self, managed: Managed, sockets: Collection[str]) -> Evidence:
        """What there is to see of *managed* now."""
        said = frozenset((managed.ready,)) if managed.ready in ("client", "notify") else frozenset()
        found = self.registrations(managed.pid, sockets)
        return Evidence(said, frozenset(self._names[entry.inode] for entry in found))

    def refusal(self, pid: int) -> str | None:
        """Why the registrations of *pid* can't be suspended; None if they can."""
        return self.impossible or epoll_rights.permitted(pid)

    def suspend(self, pid: int, sockets: Iterable[str]) -> str:
        """Suspend the registrations of *sockets* in the process tree of *pid*; what came of it, in words."""
        if self.impossible:
            return f"not suspended: {self.impossible}"
        try:
            count = epoll.suspend_all(pid, self._sockets(sockets))
        except ProcessLookupError:
            return "not suspended: it has died"
        except (NotPermitted, OSError) as error:
            log.warning("pid %d: %s", pid, error)
            return f"not suspended: {error}"
        if count:
            return f"{count} registration{'s' if count > 1 else ''} of pid {pid} suspended"
        if any(entry.suspended for entry in self.registrations(pid, sockets)):
            return f"the registrations of pid {pid} are suspended"
        return "not suspended: it has no event registration (it reads by select, poll or a blocking accept)"

    def resume(self, pid: int, sockets: Iterable[str]) -> int:
        """Resume the registrations of *sockets* in the process tree of *pid*; how many there were."""
        if self.impossible:
            return 0
        try:
            return epoll.resume_all(pid, self._sockets(sockets))
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

    def _sockets(self, sockets: Iterable[str]) -> dict[int, int]:
        return dict(self._shared[name] for name in sockets if name in self._shared)
