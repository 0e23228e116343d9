"""Where a broker and its clients meet, with nothing configured: a directory named after the manager.

A manager is named by its pid and start time, so that no later process has its directory. The directory is looked for
only where no other user could have put it: in a parent that the manager's user (or root) owns.

Where everybody may write (/tmp), anybody can take the name of that parent before us. Then the parent has a name that
nobody could know beforehand, ``sockshare-UID.RANDOM``; whoever owns it tells ours from what others have put there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence

from .peers import start_time

_CIRCUSD, _SUPERVISORD = "circusd", "supervisord"
_PROGRAMS = frozenset({_CIRCUSD, _SUPERVISORD})
_MODULES = {"circus.circusd": _CIRCUSD, "supervisor.supervisord": _SUPERVISORD}
#: The interpreter's options that take the next argument (python(1)).
_WITH_VALUE = frozenset({"-W", "-X", "--check-hash-based-pycs"})


#: A file in a runtime directory, there while there is no broker and none is about to begin: why, and what to do.
STOPPED = "stopped"
#: The same while no broker can run here at all: the mistakes that one would tell, one a line.
REFUSED = "refused"


def is_manager(argv: Sequence[str]) -> bool:
    """Whether a process with these arguments is circusd or supervisord.

    However it was started (directly, by an interpreter, ``-m``, ``-c``) or renamed itself (setproctitle). One that is
    embedded in a program of another name is not recognized.
    """
    return _recognized(argv) is not None


def manager_name(argv: Sequence[str]) -> str:
    """Which of the two a manager with these arguments is; of one that is embedded, what its arguments suggest."""
    return _recognized(argv) or (_SUPERVISORD if _SUPERVISORD in " ".join(argv) else _CIRCUSD)


def _recognized(argv: Sequence[str]) -> str | None:
    if not argv:
        return None
    # A renamed process has its title, which may have words after the name, for its only argument.
    title = _program(argv[0].split(" ", 1)[0].rstrip(":"))
    if title in _PROGRAMS:
        return title
    if not _program(argv[0]).startswith(("python", "pypy")):
        return None
    rest = iter(argv[1:])
    for argument in rest:
        if argument in _WITH_VALUE:
            next(rest, None)
        elif argument.startswith("-m"):
            return _MODULES.get(argument[2:] or next(rest, ""))
        elif argument == "-c":
            code = next(rest, "")
            return next((program for module, program in _MODULES.items() if module in code), None)
        elif not argument.startswith("-"):
            program = _program(argument)
            return program if program in _PROGRAMS else None
    return None


def _program(path: str) -> str:
    name = path.rpartition("/")[2]
    return name[:-3] if name.endswith(".py") else name


def arguments(pid: int) -> list[str]:
    """The arguments of process *pid* (proc_pid_cmdline(5)); none if it is gone, a kernel thread, or hidden from us."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read()
    except OSError:
        return []
    return [os.fsdecode(word) for word in line.rstrip(b"\0").split(b"\0")] if line else []


def user(pid: int) -> int:
    """The effective uid of process *pid*.

    Not the owner of ``/proc/PID``: that is root for a process that changed its uid and is not dumpable since (proc(5)).

    Raises:
        ProcessLookupError: No such process, or it is hidden from us.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Uid:"):
                    return int(line.split()[2])
    except (FileNotFoundError, ProcessLookupError):
        pass
    raise ProcessLookupError(f"can't read /proc/{pid}/status: no such process")


def bases(uid: int, root: str = "/") -> list[str]:
    """The directories that may hold the meeting points of the managers of user *uid*, best first."""
    own = [os.path.join(root, f"run/user/{uid}/sockshare"), os.path.join(root, f"tmp/sockshare-{uid}")]
    return [os.path.join(root, "run/sockshare"), *own] if uid == 0 else own


#: Where everybody may make directories, best first.
_FOR_ALL = ("tmp", "dev/shm")


def spare_prefixes(uid: int, root: str = "/") -> list[str]:
    """What the paths of further bases of user *uid* begin with, which are made where none of `bases` can be used."""
    return [os.path.join(root, parent, f"sockshare-{uid}.") for parent in _FOR_ALL]


def all_bases(uid: int, root: str = "/") -> Iterator[str]:
    """Those of `bases`, whether they are there or not, then the further ones that are."""
    yield from bases(uid, root)
    for prefix in spare_prefixes(uid, root):
        parent, beginning = os.path.split(prefix)
        try:
            entries = os.listdir(parent)
        except OSError:
            continue
        yield from (os.path.join(parent, entry) for entry in sorted(entries) if entry.startswith(beginning))


def name(pid: int) -> str:
    """The name of the meeting point of manager *pid*.

    Raises:
        ProcessLookupError: No such process.
    """
    return f"{pid}-{start_time(pid)}"


def manager(entry: str) -> int | None:
    """The pid of the manager after whom a meeting point was named, if it lives."""
    pid, _, start = os.path.basename(entry).partition("-")
    try:
        return int(pid) if start_time(int(pid)) == int(start) else None
    except (ValueError, ProcessLookupError):
        return None


def points(pid: int, root: str = "/") -> list[str]:
    """Where the meeting point of manager *pid* may be, best first, whether or not anything is there.

    Raises:
        ProcessLookupError: No such process.
    """
    own = name(pid)
    return [os.path.join(base, own) for base in bases(user(pid), root)]


def trusted(base: str, uid: int) -> bool:
    """Whether *base* is a directory, not a link to one, that user *uid* or root made, and nobody else may write."""
    try:
        status = os.lstat(base)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid in (0, uid) and not status.st_mode & 0o022


def places(pid: int, root: str = "/") -> Iterator[str]:
    """The paths at which a meeting point of manager *pid* would be trusted, whether or not anything is there.

    Raises:
        ProcessLookupError: No such process.
    """
    uid, own = user(pid), name(pid)
    return (os.path.join(base, own) for base in all_bases(uid, root) if trusted(base, uid))


def find(pid: int, root: str = "/") -> str | None:
    """The meeting point of manager *pid* (a directory, or a link to the configured one), if there is one by now.

    Raises:
        ProcessLookupError: No such process.
    """
    return next(filter(os.path.isdir, places(pid, root)), None)


def running(uid: int, root: str = "/") -> Iterator[str]:
    """The meeting points of all living managers of user *uid*, as far as we may list them."""
    for base in all_bases(uid, root):
        if not trusted(base, uid):
            continue
        try:
            entries = sorted(os.listdir(base))
        except OSError:
            continue
        for entry in entries:
            point = os.path.join(base, entry)
            if manager(entry) is not None and os.path.isdir(point):
                yield point


def obstacle(uid: int, root: str = "/") -> str | None:
    """Why no manager of user *uid* can make a meeting point; None where it can, or for who is another user."""
    if os.geteuid() != uid:
        return None
    refusals = []
    for base in [*bases(uid, root), *spare_prefixes(uid, root)]:
        parent = base if trusted(base, uid) else os.path.dirname(base)
        if os.path.lexists(base) and parent != base:
            refusals.append(f"{base} is another user's")
        elif os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
            return None
        else:
            refusals.append(f"can't write to {parent}")
    return "; ".join(_once(refusals))


def _once(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))
