"""Which processes are left over: they serve a shared socket, and belong to no process that the manager runs.

A process belongs to the managed one that it descends from. One whose parents have ended descends from nobody; it is
known by the session or process group that the managed process began, whose number the kernel gives to no other
process while there is a member (credentials(7)), by what was recorded of the managed process's tree, or by the
``NOTIFY_SOCKET`` in its environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Suspect(NamedTuple):
    """A process that has a shared socket open."""

    pid: int
    start: int  # clock ticks since boot, as everywhere here
    ancestors: tuple[int, ...]  # itself first
    session: int
    group: int
    notifies: int | None  # the managed process whose NOTIFY_SOCKET it was given, by its environment


class Ended(NamedTuple):
    """A managed process that has ended."""

    program: str
    start: int
    family: frozenset[tuple[int, int]] = frozenset()  # pid and start of each process of its tree, as it was last seen


class Origin(NamedTuple):
    """The managed process that a suspect belongs to."""

    pid: int
    lives: bool


def origin(suspect: Suspect, live: Mapping[int, int], ended: Mapping[int, Ended]) -> Origin | None:
    """The managed process that *suspect* belongs to, one of *live* (pid: start) or of *ended*; None if nobody knows."""
    for pid in (*suspect.ancestors, suspect.session, suspect.group):
        if pid in live:
            return Origin(pid, lives=True)
    for pid, one in ended.items():
        if pid in (suspect.session, suspect.group) or (suspect.pid, suspect.start) in one.family:
            return Origin(pid, lives=False)
        if any(member == suspect.session and start <= suspect.start for member, start in one.family):
            return Origin(pid, lives=False)
    notifies = suspect.notifies
    if notifies is None:
        return None
    if notifies in live and live[notifies] <= suspect.start:
        return Origin(notifies, lives=True)
    if notifies in ended and ended[notifies].start <= suspect.start:
        return Origin(notifies, lives=False)
    return None


class Leftover(NamedTuple):
    """One process that is left over, and one socket that it serves."""

    pid: int
    command: str
    socket: str
    origin: int | None  # the managed process that it is left of; None if nobody knows
    root: tuple[int, int]  # the topmost process above it that is left of the same, by pid and start: its master
    unseen: str = ""  # why it can't be seen whether it serves; empty: it does

    def remedy(self, program: str, *, runs: bool = True) -> str:
        """What to do about it, as one that is left over of *program*, which *runs* so that it can be reloaded."""
        # The master too, which would start another one in its place; and it, which a wrapper would leave behind.
        kill = "`kill " + " ".join(str(pid) for pid in dict.fromkeys((self.root[0], self.pid))) + "`"
        if self.unseen:
            return f"whether it serves can't be seen ({self.unseen}): look at it, and end it by {kill}"
        if self.origin is None:
            return f"it may be no process of {program}'s: look at it, and end it by {kill}"
        return f"`sockshare reload {program}` ends it, and so does {kill}" if runs else f"end it by {kill}"

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command})"
