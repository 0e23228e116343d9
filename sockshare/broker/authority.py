"""Who may command the broker, and see everything: whoever may command the manager."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sockshare.core.errors import NotPermitted
from sockshare.kernel import access

from .endpoint import HOST, Caller

_IPC = "ipc://"


class Authority:
    """That of root, the manager's user, and those who may write to the manager's own endpoint.

    Args:
        manager: As the hello has it; its `endpoint`, if there is one, is where it takes commands itself.
    """

    def __init__(self, manager: Mapping[str, Any]) -> None:
        self._manager = manager
        endpoint = str(manager.get("endpoint") or "")
        # Whoever reaches a tcp:// endpoint is nobody that the kernel could name.
        self._path = endpoint[len(_IPC) :] if endpoint.startswith(_IPC) else None

    def may_command(self, pid: int, uid: int) -> bool:
        """Whether process *pid* of user *uid* may."""
        if uid in (0, self._manager["uid"]):
            return True
        who = access.subject(pid, uid)
        return self._path is not None and who is not None and access.may_write(self._path, who)

    def owner(self) -> set[int]:
        """The user who owns the endpoint (``endpoint_owner``), and may write to it."""
        try:
            status = None if self._path is None else os.stat(self._path)
        except OSError:
            return set()
        return {status.st_uid} if status is not None and status.st_mode & 0o200 else set()

    def everybody(self) -> bool:
        """Whether all users may."""
        return self._path is not None and access.may_write(self._path, access.ANYBODY)

    def sees_everything(self, caller: Caller) -> bool:
        """Whether nothing is kept from *caller*."""
        return caller.route == HOST or self.may_command(caller.pid, caller.uid)

    def check(self, caller: Caller, what: str) -> None:
        """Refuse *caller* to do *what*, if it may not.

        Raises:
            NotPermitted: It may not.
        """
        if self.sees_everything(caller):
            return
        only = f"can't {what} as uid {caller.uid}: only root and the manager's uid {self._manager['uid']} may"
        if self._path is not None:
            raise NotPermitted(f"{only}, and who may write to circusd's endpoint {self._path}")
        if self._manager["kind"] == "supervisor":
            raise NotPermitted(f"{only}; `supervisorctl sockshare` may what supervisorctl may")
        raise NotPermitted(only)
