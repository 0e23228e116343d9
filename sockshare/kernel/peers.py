"""Who a process is, by the kernel's word: credentials of a peer, pidfds, ancestors.

A pid alone names nobody for long. A process is identified by the inode of its pidfd where the kernel gives every
process its own (pidfs, Linux 6.9), and by (pid, start time) elsewhere.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

_SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5; the socket module does not name it
_UCRED = struct.Struct("3i")
_PIDFS_DEVICE: list[int] = []  # the device number of pidfs, once known


class Peer(NamedTuple):
    """The credentials that the kernel recorded when the peer connected (unix(7), ``SO_PEERCRED``)."""

    pid: int
    uid: int
    gid: int


class Identity(NamedTuple):
    """One process, for ever: no later process has the same identity."""

    pid: int
    start: int  # clock ticks since boot
    inode: int  # of its pidfd; 0 where the kernel gives all pidfds one inode


def credentials(sock: socket.socket) -> Peer:
    """The peer of a connected ``AF_UNIX`` socket; pid 0 for a process of an outer pid namespace.

    Raises:
        OSError: As getsockopt(2).
    """
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def pidfd_of_peer(sock: socket.socket) -> int | None:
    """A pidfd of the process that connected, the caller's to close; None where the kernel (before 6.5) can't say."""
    try:
        fd = struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]
    except OSError:
        return None
    assert isinstance(fd, int)
    return fd


def pidfd_open(pid: int) -> int:
    """A pidfd of *pid* (pidfd_open(2)), close-on-exec.

    Raises:
        ProcessLookupError: No such process.
    """
    return os.pidfd_open(pid)


def _stat_fields(pid: int) -> list[bytes]:
    # proc_pid_stat(5): the command's name may hold blanks and parentheses, so the fields are counted from its last ')'.
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"can't read /proc/{pid}/stat: no such process") from None


def start_time(pid: int) -> int:
    """When *pid* started, in clock ticks since boot (field 22 of ``/proc/PID/stat``).

    Raises:
        ProcessLookupError: No such process.
    """
    return int(_stat_fields(pid)[19])


def parent(pid: int) -> int:
    """The parent of *pid*; 0 for one that has none in this pid namespace.

    Raises:
        ProcessLookupError: No such process.
    """
    return int(_stat_fields(pid)[1])


def ancestors(pid: int) -> Iterator[int]:
    """*pid*, its parent, and so on; ends early when one of them is gone."""
    while pid > 0:
        yield pid
        try:
            pid = parent(pid)
        except ProcessLookupError:
            return


def identity(pid: int, pidfd: int | None = None) -> Identity:
    """The identity of *pid*, which *pidfd*, if given, is known to be.

    Raises:
        ProcessLookupError: No such process.
    """
    if pidfd is not None:
        return Identity(pid, start_time(pid), _inode(pidfd))
    own = pidfd_open(pid)
    try:
        return Identity(pid, start_time(pid), _inode(own))
    finally:
        os.close(own)


def _inode(pidfd: int) -> int:
    status = os.fstat(pidfd)
    if not _PIDFS_DEVICE:
        # Before pidfs all pidfds share the one inode of anon_inodefs, as an epoll descriptor does.
        import select

        with select.epoll() as other:
            anonymous = os.fstat(other.fileno()).st_dev
        _PIDFS_DEVICE.append(-1 if anonymous == status.st_dev else status.st_dev)
    return status.st_ino if status.st_dev == _PIDFS_DEVICE[0] else 0
