"""Whether a process waits for connections without an epoll: /proc/PID/task/TID/syscall shows the call that a thread
blocks in, with its arguments (proc(5)); what those of select(2) and poll(2) point to is in the process's memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple

from sockshare.kernel import processes

# The numbers of x86_64; on other machines nothing is seen.
_READS = frozenset((43, 288, 45, 47, 299))  # accept, accept4, recvfrom, recvmsg, recvmmsg: the descriptor
_SELECTS = frozenset((23, 270))  # select, pselect6: how many, their bits
# poll, ppoll: structs, how many. 219 is restart_syscall: a poll that was interrupted by a stop goes on in it.
_POLLS = frozenset((7, 271, 219))
CALLS = _READS | _SELECTS | _POLLS
_POLLFD = struct.Struct("=ihh")
_MOST = 4096


class Wait(NamedTuple):
    """What one thread waits for at this moment."""

    thread: int
    sockets: frozenset[int]  # the inodes of the shared ones among it
    pipes: bool  # whether pipes or eventfds are among it, by which others of its process wake it
    others: bool  # whether anything else is


def waiting(pid: int, inodes: Collection[int]) -> set[int]:
    """Which of the sockets *inodes* some thread of *pid* or of a descendant waits on, by its call of this moment.

    A busy one is not seen: what is not waited for now may be in a millisecond. About 0.1 ms a process and thread.

    Raises:
        PermissionError: A process may not be looked into.
    """
    found: set[int] = set()
    for member in processes.tree(pid):
        for wait in waits(member, inodes):
            found |= wait.sockets
    return found


def unseen() -> str:
    """Why no wait is seen on this machine at all; empty where they are."""
    machine = os.uname().machine
    return "" if machine == "x86_64" else f"the system calls of {machine} are not known, so only epoll is seen"


def waits(pid: int, inodes: Collection[int]) -> list[Wait]:
    """The waits of the threads of *pid* in which a socket of *inodes* is; none of a process that is gone.

    Raises:
        PermissionError: As `waiting`.
    """
    if unseen():
        return []
    try:
        targets = dict(processes.descriptors(pid))
        shared = {fd: int(target[8:-1]) for fd, target in targets.items() if target.startswith("socket:[")}
        shared = {fd: inode for fd, inode in shared.items() if inode in inodes}
        if not shared:
            return []
        found = []
        for thread, asked in _calls(pid):
            mine = asked & shared.keys()
            if mine:
                rest = {targets.get(fd, "") for fd in asked - mine}
                pipes = {target for target in rest if target.startswith("pipe:") or target == "anon_inode:[eventfd]"}
                sockets = frozenset(shared[fd] for fd in mine)
                found.append(Wait(thread, sockets, bool(pipes), bool(rest - pipes)))
        return found
    except (FileNotFoundError, ProcessLookupError):
        return []
    except PermissionError:
        if processes.alive(pid):  # a zombie's directory is root's
            raise
        return []


def _calls(pid: int) -> Iterator[tuple[int, set[int]]]:
    """Each thread that blocks in one of `CALLS`, with the descriptors that it waits for."""
    mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{thread}/syscall") as file:
                    words = file.read().split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if len(words) < 7:  # it runs
                continue
            call, first, second, third, fourth = int(words[0]), *(int(word, 16) for word in words[1:5])
            if call in _READS:
                yield int(thread), {first}
            elif call in _SELECTS:
                yield int(thread), set().union(*(_bits(mem, bits, first) for bits in (second, third, fourth) if bits))
            elif call in _POLLS:
                yield int(thread), _structs(mem, first, second)
    finally:
        os.close(mem)


def _bits(mem: int, address: int, count: int) -> set[int]:
    data = _read(mem, address, (min(count, _MOST) + 7) // 8)
    return {number for number in range(len(data) * 8) if data[number // 8] >> number % 8 & 1}


def _structs(mem: int, address: int, count: int) -> set[int]:
    if count > _MOST:
        return set()
    data = _read(mem, address, count * _POLLFD.size)
    whole = len(data) - len(data) % _POLLFD.size
    return {number for number, _, _ in _POLLFD.iter_unpack(data[:whole])}


def _read(mem: int, address: int, size: int) -> bytes:
    try:
        return os.pread(mem, size, address)
    except (OSError, OverflowError):  # no address, or one of another kind of call
        return b""
