"""What /proc says of a process (proc(5)).

A process may end between two reads. A question about one process that is gone raises `ProcessLookupError`; `alive`
says False and `tree` leaves it out. A zombie still answers: it is in `tree`, has a state, and no descriptors.
"""

from __future__ import annotations

import os

_PAGE = os.sysconf("SC_PAGE_SIZE")
_AT_ONCE = 65536


def tree(pid: int) -> list[int]:
    """*pid* and all its descendants, parents before children; empty when *pid* is gone.

    A descendant whose parent has ended is not found: the kernel gave it another parent.
    """
    found = [pid] if os.path.isdir(f"/proc/{pid}") else []
    # The list grows while it is walked. A kernel may skip a child when a sibling ends during the read, and a process
    # may fork at any moment: who needs them all reads again until nothing is new.
    for parent in found:
        found += [child for child in children(parent) if child not in found]
    return found


def identified_tree(pid: int) -> frozenset[tuple[int, int]]:
    """As `tree`, each with its start in clock ticks since boot, by which no later process has its pid."""
    found = set()
    for member in tree(pid):
        try:
            found.add((member, int(_stat(member)[19])))
        except ProcessLookupError:
            continue
    return frozenset(found)


def is_same(identified: tuple[int, int]) -> bool:
    """Whether the process that `identified_tree` found runs still."""
    pid, start = identified
    try:
        fields = _stat(pid)
    except ProcessLookupError:
        return False
    return int(fields[19]) == start and fields[0] not in b"ZXx"


def alive(pid: int) -> bool:
    """Whether *pid* runs: it exists and is not a zombie."""
    try:
        return state(pid) not in "ZXx"
    except ProcessLookupError:
        return False


def state(pid: int) -> str:
    """The state letter of proc(5): R, S, D, T (stopped), t (traced), Z (zombie), ..."""
    return _stat(pid)[0].decode()


def exit_code(pid: int) -> int:
    """How the zombie *pid* ended, in the form of waitpid(2): its parent has not asked yet.

    Raises:
        ProcessLookupError: Its parent has: nothing is left of it.
        ValueError: It has not ended.
        PermissionError: It may not be looked into: /proc says 0 for what it does not show (proc_pid_stat(5)).
    """
    fields = _stat(pid)
    if fields[0] not in (b"Z", b"X"):
        raise ValueError(f"can't tell how pid {pid} ended: it runs")
    status = int(fields[49])
    if not status and uid(pid) != os.geteuid() and not has_cap_sys_ptrace():
        raise PermissionError(f"can't tell how pid {pid} ended: it is another user's, and CAP_SYS_PTRACE is missing")
    return status


def has_cap_sys_ptrace() -> bool:
    """Whether this process has it. Root does unless somebody took it away, as container runtimes do."""
    return bool(int(_status(os.getpid(), b"CapEff"), 16) >> 19 & 1)


def command(pid: int) -> list[str]:
    """The arguments *pid* was started with; empty for a zombie."""
    line = _read(pid, "cmdline")
    return [os.fsdecode(argument) for argument in line.removesuffix(b"\0").split(b"\0")] if line else []


def variable(pid: int, name: str) -> str | None:
    """What *name* was in the environment with which *pid* began its program; None if it was not there.

    Raises:
        ProcessLookupError: *pid* is gone.
        PermissionError: *pid* may not be looked into.
    """
    for entry in _read(pid, "environ").split(b"\0"):
        key, _, value = entry.partition(b"=")
        if key == os.fsencode(name):
            return os.fsdecode(value)
    return None


def has_executed(pid: int) -> bool:
    """Whether *pid* has become a program since it was forked (PF_FORKNOEXEC, field 9 of proc_pid_stat(5))."""
    return not int(_stat(pid)[6]) & 0x40


def uid(pid: int) -> int:
    """The effective user id of *pid*."""
    return int(_status(pid, b"Uid").split()[1])


def uids(pid: int) -> frozenset[int]:
    """The user ids of *pid*: real, effective, saved, and that for files; those of a zombie too."""
    return frozenset(map(int, _status(pid, b"Uid").split()))


def catches(pid: int, signum: int) -> bool:
    """Whether *pid* has a handler of its own for *signum* (SigCgt); not for an ignored or a blocked one."""
    return bool(int(_status(pid, b"SigCgt"), 16) >> (signum - 1) & 1)


#: Programs that have a handler for the usual stop signals in any case, most often only to end properly.
_RUNTIMES = frozenset({"node", "nodejs", "deno", "bun", "java", "ruby", "beam.smp", "dotnet"})
_REAL_TIME = sum(1 << (number - 1) for number in range(35, 65))


def runtime_with_handlers(pid: int) -> str:
    """The language runtime of *pid* if it is one that has handlers of its own, so that `catches` tells nothing of the
    program that runs on it; else empty."""
    try:
        name = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None
    except PermissionError:
        return ""
    # An upgrade removes the file that runs; Debian's ruby is ruby3.1.
    name = name.removesuffix(" (deleted)").rstrip("0123456789.")
    if name in _RUNTIMES:
        return name
    # Go's takes every signal there is (os/signal), nobody else does.
    return "Go" if int(_status(pid, b"SigCgt"), 16) & _REAL_TIME == _REAL_TIME else ""


def memory(pid: int) -> int:
    """Resident memory of *pid* in bytes (the kernel's figure is cheap and may lag by some pages per thread)."""
    return int(_read(pid, "statm").split()[1]) * _PAGE


def descriptors(pid: int) -> list[tuple[int, str]]:
    """Every open descriptor of *pid* with what it leads to, such as ``socket:[4242]``, by number.

    Raises:
        ProcessLookupError: *pid* is gone.
        PermissionError: *pid* may not be looked into (ptrace(2), PTRACE_MODE_READ_FSCREDS).
    """
    try:
        directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _gone(pid) from None
    found = []
    try:
        for name in os.listdir(directory):
            try:
                found.append((int(name), os.readlink(name, dir_fd=directory)))
            except (FileNotFoundError, ProcessLookupError):
                continue  # closed meanwhile
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None
    finally:
        os.close(directory)
    return sorted(found)


def socket_descriptors(pid: int) -> dict[int, int]:
    """The inode of every socket that *pid* has open, with the lowest descriptor that leads to it.

    Raises:
        ProcessLookupError, PermissionError: As `descriptors`.
    """
    found: dict[int, int] = {}
    for fd, target in descriptors(pid):
        if target.startswith("socket:["):
            found.setdefault(int(target[8:-1]), fd)
    return found


def children(pid: int) -> list[int]:
    """The processes that *pid* has started and that are not buried; none when it is gone."""
    # A child belongs to the thread that forked it, so every thread is asked.
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return found
    for thread in threads:
        try:
            found += map(int, _read(pid, f"task/{thread}/children").split())
        except ProcessLookupError:
            continue
    return found


def _stat(pid: int) -> list[bytes]:
    # The command in parentheses may hold spaces and parentheses itself: the last one ends it.
    return _read(pid, "stat").rpartition(b")")[2].split()


def _status(pid: int, key: bytes) -> bytes:
    for line in _read(pid, "status").splitlines():
        name, _, value = line.partition(b":")
        if name == key:
            return value
    raise OSError(f"can't read {key.decode()} of pid {pid}: /proc/{pid}/status has no such line")


def _read(pid: int, name: str) -> bytes:
    try:
        return content(f"/proc/{pid}/{name}")
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None


def content(path: str) -> bytes:
    """All of a file of /proc, in half of the time that an object for it takes; errors as of open(2) and read(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, _AT_ONCE)
        if not data:
            return data
        parts = [data]
        while more := os.read(fd, _AT_ONCE):
            parts.append(more)
        return b"".join(parts)
    finally:
        os.close(fd)


def _gone(pid: int) -> ProcessLookupError:
    return ProcessLookupError(f"can't look into pid {pid}: no such process")
