"""What is believed to show that a new process serves."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple


class Evidence(NamedTuple):
    """What has been seen of one process."""

    said: Set[str]  # "client" (by the library), "notify" (READY=1)
    registered: Set[str]  # the names of the sockets whose event registration its process tree holds


class Expectation(NamedTuple):
    """What has to be seen, by *mode* (``sockshare.ready``) and by what the process that is to be replaced did."""

    mode: str
    sockets: frozenset[str]  # that the program may have
    before: Evidence  # of the old process

    def shown_by(self, now: Evidence) -> str | None:
        """What shows that a process of which *now* was seen is ready; None while nothing does.

        In the mode ``auto`` a process must do at least what its predecessor did: gunicorn says READY=1 before its
        workers have loaded anything, so that is not enough where the old process had registered the socket.
        """
        if self.mode == "hold":
            return "hold"
        if self.mode in ("client", "notify"):
            return self.mode if self.mode in now.said else None
        if self.mode == "auto" and "client" in now.said:
            return "client"
        wanted = self.before.registered & self.sockets
        if wanted:
            return "registration" if wanted <= now.registered else None
        if self.sockets and now.registered & self.sockets:
            return "registration"
        if self.mode == "registration":
            return None
        if "notify" in now.said:
            return "notify"
        return None if self.before.said else "hold"

    @property
    def awaited(self) -> str:
        """What is waited for, in words."""
        wanted = self.before.registered & self.sockets
        if self.mode == "registration" or (self.mode == "auto" and wanted):
            names = ", ".join(sorted(wanted or self.sockets))
            return f"its event registration of {names}" + (", as the old process has" if wanted else "")
        if self.mode == "client" or (self.mode == "auto" and "client" in self.before.said):
            return "ready() of the sockshare library"
        return "READY=1 on its NOTIFY_SOCKET"
