"""Descriptors over ``AF_UNIX`` sockets: ``SCM_RIGHTS`` (unix(7), cmsg(3))."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import resource
import socket
from collections.abc import Iterable, Sequence

_INT = array.array("i").itemsize

#: The most descriptors one message may carry (``SCM_MAX_FD`` of the kernel).
MOST = 253

#: How many descriptors `make_room` makes room for at most: 128 KiB of pointers.
ROOM = 16_384

#: Whether a socket takes descriptors from its peers: asm-generic/socket.h, Linux 6.16; the socket module has no name.
SO_PASSRIGHTS = 83


class Truncated(OSError):
    """Descriptors were sent that this process could not take, as when it is at its ``RLIMIT_NOFILE``; none was kept.

    Attributes:
        data: The bytes that they came with.
    """

    data = b""


def are_gone(error: BaseException) -> bool:
    """Whether *error* says that no descriptor could be opened: for this process, or on this machine."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def make_room() -> None:
    """Have the kernel's table of this process's descriptors hold as many as it may open, at most `ROOM`.

    The table grows when a number beyond it is given out. In a process with threads that call, whatever it is, waits
    for an RCU grace period (fs/file.c, ``expand_fdtable``), 10 to 30 ms. None does for a table large from the start.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = (ROOM if soft == resource.RLIM_INFINITY else min(soft, ROOM)) - 1
    with contextlib.suppress(OSError), open(os.devnull, "rb", buffering=0) as file:
        os.close(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, last))


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send *data* as one message, with duplicates of *fds*.

    Raises:
        OSError: As sendmsg(2); ``ETOOMANYREFS`` when this user has too many descriptors in flight.
    """
    if fds:
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    else:
        sock.send(data)


def receive(sock: socket.socket, size: int, max_fds: int = 0) -> tuple[bytes, list[int]]:
    """Receive at most *size* bytes and *max_fds* descriptors, which are close-on-exec from their first moment.

    Returns:
        The bytes (none: the peer is gone) and the descriptors, which are the caller's to close.

    Raises:
        Truncated: More descriptors came than were asked for, or than this process may open. All were closed.
        OSError: As recvmsg(2).
    """
    # socket.recv_fds() drops its flags (CPython issue 107898): its descriptors would leak into any program that
    # another thread starts just then.
    data, ancillary, flags, _ = sock.recvmsg(
        size, socket.CMSG_LEN(max_fds * _INT) if max_fds else 0, socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % _INT])
            fds.extend(numbers)
    if flags & socket.MSG_CTRUNC:
        close_all(fds)
        truncated = Truncated(
            errno.EMFILE, "can't receive descriptors: more came than this process may open (RLIMIT_NOFILE)"
        )
        truncated.data = data
        raise truncated
    return data, fds


def carries_descriptors(sock: socket.socket) -> bool:
    """Whether descriptors come with the next message on *sock*; they are not received.

    Raises:
        OSError: As recvmsg(2); ``EAGAIN`` when there is none.
    """
    _, _, flags, _ = sock.recvmsg(1, 0, socket.MSG_PEEK)
    return bool(flags & socket.MSG_CTRUNC)


def close_all(fds: Iterable[int]) -> None:
    """Close each of *fds*; one that is closed already is passed over."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                continue
            # close(2): on Linux the descriptor is released whatever the error says.
