"""What is believed to show that a new process serves."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple


class Evidence(NamedTuple):
    """What has been seen of one process."""

    said: Set[str]  # "client" (by the library), "notify" (READY=1)
    registered: Set[str]  # the sockets that its process tree has registered or waits on, by name
    unseen: str = ""  # why its process tree can't be looked into; empty: it was


class Expectation(NamedTuple):
    """What has to be seen, by *mode* (``sockshare.ready``) and by what the process that is to be replaced did."""

    mode: str
    sockets: frozenset[str]  # that the program may have
    before: Evidence  # of the old process

    def shown_by(self, now: Evidence) -> str | None:
        """What shows that a process of which *now* was seen is ready; None while nothing does.

        In the mode ``auto`` a process must be seen to wait for connections, on every socket on which the old one did:
        gunicorn says READY=1 before its workers have loaded anything, and for a module that does not exist. READY=1
        alone is enough where no wait can be seen. That nothing was seen of the old process asks for nothing less: it
        may never have served.
        """
        if self.mode == "hold":
            return "hold"
        if self.mode in ("client", "notify"):
            return self.mode if self.mode in now.said else None
        if self.mode == "auto" and "client" in now.said:
            return "client"
        wanted = self.before.registered & self.sockets
        if wanted <= now.registered if wanted else now.registered & self.sockets:
            return "registration"
        if self.mode == "auto" and "notify" in now.said and (now.unseen or not self.sockets):
            return "notify"
        return None

    @property
    def awaited(self) -> str:
        """What is waited for, in words."""
        if self.mode == "hold":
            return "nothing but that it lives (ready = hold)"
        wanted = self.before.registered & self.sockets
        if self.mode == "client" or (self.mode == "auto" and "client" in self.before.said and not wanted):
            return "ready() of the sockshare library"
        if self.mode == "notify" or (self.mode == "auto" and not self.sockets):
            return "READY=1 on its NOTIFY_SOCKET"
        names = ", ".join(sorted(wanted or self.sockets))
        return f"its event registration of {names}" + (", as the old process has" if wanted else "")

    def lacking(self, now: Evidence, key: str) -> str:
        """Why a process of which *now* was seen is not ready yet, and what to write if it serves all the same.

        Args:
            key: What ``ready`` is called in the section of its program.
        """
        lack = f"no sign of {self.awaited}"
        if self.mode not in ("auto", "registration"):
            return lack
        hold = f"if it serves all the same, write {key} = hold in its section"
        if now.unseen:
            return f"can't see whether it serves: {now.unseen}; {hold}"
        if not self.sockets:
            return f"nothing of it can be seen, for its section names no socket, and it has not said READY=1; {hold}"
        if self.before.registered & self.sockets:
            return lack
        if "notify" in now.said:
            return f"it said READY=1, but there is {lack}; if that is enough, write {key} = notify in its section"
        return f"{lack}; {hold}"
