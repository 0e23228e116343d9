"""Turns: whose request is worked on next, and how much of everybody's may wait.

A few requests of each process are under way at once, the others wait in their order. The processes of one user have
also a bound together, and take turns at it; users don't wait for each other. What exceeds a bound is refused.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class Bounds(NamedTuple):
    """How many requests may be under way at once, and how many, of how many bytes together, may wait."""

    at_once: int
    waiting: int
    size: int


#: A program may have some hundred sockets (`sockshare.core.spec.MOST_SOCKETS`), and asks for all of them at once.
OF_PROCESS = Bounds(16, 512, 128 << 10)
#: A thousand processes may start at once under one user.
OF_USER = Bounds(256, 16384, 4 << 20)


class _Process:
    __slots__ = ("items", "listed", "size", "under_way")

    def __init__(self) -> None:
        self.items: deque[bytes] = deque()
        self.size = 0
        self.under_way = 0
        self.listed = False  # whether it is among those of its user that may be next


class _User:
    __slots__ = ("next", "processes", "size", "under_way", "waiting")

    def __init__(self) -> None:
        self.processes: dict[int, _Process] = {}
        self.next: deque[int] = deque()
        self.waiting = 0
        self.size = 0
        self.under_way = 0


class Turns:
    """The requests of all processes, by user and pid; each as one bytes object, the least that it can take."""

    def __init__(self, of_process: Bounds = OF_PROCESS, of_user: Bounds = OF_USER) -> None:
        self._of_process = of_process
        self._of_user = of_user
        self._users: dict[int, _User] = {}

    def __len__(self) -> int:
        """How many requests wait or are under way."""
        return sum(user.waiting + user.under_way for user in self._users.values())

    def add(self, uid: int, pid: int, item: bytes) -> bool:
        """Let *item* wait for its turn; false if as much of *pid*, or of *uid*, waits as may."""
        user = self._users.get(uid) or _User()
        process = user.processes.get(pid) or _Process()
        if not (
            len(process.items) < self._of_process.waiting
            and process.size + len(item) <= self._of_process.size
            and user.waiting < self._of_user.waiting
            and user.size + len(item) <= self._of_user.size
        ):
            return False
        self._users[uid] = user
        user.processes[pid] = process
        process.items.append(item)
        process.size += len(item)
        user.waiting += 1
        user.size += len(item)
        self._list(user, pid, process)
        return True

    def take(self, uid: int) -> tuple[int, bytes] | None:
        """The next request of *uid* that may begin, and whose it is: it is under way from now on; None: none may."""
        user = self._users.get(uid)
        if user is None or not user.next or user.under_way >= self._of_user.at_once:
            return None
        pid = user.next.popleft()
        process = user.processes[pid]
        process.listed = False
        item = process.items.popleft()
        process.size -= len(item)
        process.under_way += 1
        user.waiting -= 1
        user.size -= len(item)
        user.under_way += 1
        self._list(user, pid, process)
        return pid, item

    def done(self, uid: int, pid: int) -> None:
        """One of *pid* that was under way has ended."""
        user = self._users[uid]
        process = user.processes[pid]
        process.under_way -= 1
        user.under_way -= 1
        self._list(user, pid, process)
        if not process.items and not process.under_way:
            del user.processes[pid]
            if not user.processes:
                del self._users[uid]

    def _list(self, user: _User, pid: int, process: _Process) -> None:
        if process.items and not process.listed and process.under_way < self._of_process.at_once:
            process.listed = True
            user.next.append(pid)
