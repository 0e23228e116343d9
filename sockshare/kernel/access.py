"""Whether another process may write to a file, as the kernel would decide when it tried (path_resolution(7))."""

from __future__ import annotations

import os
from typing import NamedTuple

_WRITE, _SEARCH = 2, 1


class Subject(NamedTuple):
    """Who wants to."""

    uid: int
    groups: frozenset[int]


#: Somebody who owns nothing, and is in no group.
ANYBODY = Subject(-1, frozenset())


def subject(pid: int, uid: int) -> Subject | None:
    """Process *pid*, whose peer credentials named *uid*, with its groups (proc_pid_status(5)); None if it is another's.

    Its real group counts, not the effective one, and nothing does once it has become another user: what it executed
    since it connected, with a set-group-ID bit, gives it no rights here.
    """
    uids: list[int] = []
    groups: list[int] = []
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                name, _, values = line.partition(b":")
                if name == b"Uid":
                    uids = [int(value) for value in values.split()]
                elif name == b"Gid":
                    groups.append(int(values.split()[0]))
                elif name == b"Groups":
                    groups += [int(value) for value in values.split()]
    except OSError:
        return None
    return Subject(uid, frozenset(groups)) if uids and set(uids) == {uid} else None


def may_write(path: str, who: Subject) -> bool:
    """Whether *who* may write to what is at *path*, and pass through all directories that lead there.

    By the modes alone: what an access control list grants besides is not seen.
    """
    real = os.path.realpath(path)
    wanted = _WRITE
    try:
        while True:
            if not _permits(os.stat(real), who, wanted):
                return False
            if real == "/":
                return True
            real, wanted = os.path.dirname(real), _SEARCH
    except OSError:
        return False


def _permits(status: os.stat_result, who: Subject, wanted: int) -> bool:
    if who.uid == 0:
        return True
    # The first class that fits decides, also when a later one would grant more.
    shift = 6 if status.st_uid == who.uid else 3 if status.st_gid in who.groups else 0
    return bool(status.st_mode >> shift & wanted)
