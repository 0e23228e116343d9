"""The end of a connection from outside: its server reads the end of file, as if its client had no more to ask."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios

from sockshare.kernel import syscalls

_BYTES_RECEIVED = struct.Struct("=128xQ")  # struct tcp_info: tcpi_bytes_received (linux/tcp.h)


def duplicate(pid: int, fd: int) -> int:
    """A close-on-exec duplicate of descriptor *fd* of *pid* (pidfd_getfd(2)). Don't hold it: it delays the FIN.

    Raises:
        ProcessLookupError: *pid* is gone.
        OSError: It has no such descriptor, or may not be looked into.
    """
    pidfd = os.pidfd_open(pid)
    try:
        found = syscalls.pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)
    if found < 0:
        raise OSError(-found, f"can't duplicate descriptor {fd} of pid {pid}: {os.strerror(-found)}")
    return found


def end_reading(duplicate_fd: int, inode: int, bytes_received: int) -> bool:
    """Shut *duplicate_fd* down for reading, if it still is the socket *inode* and still has received *bytes_received*.

    The check and the deed are two system calls: a request that comes between them is lost to an event-driven server.

    Returns:
        False when it is another socket by now, or a request has come.

    Raises:
        OSError: As shutdown(2).
    """
    if os.fstat(duplicate_fd).st_ino != inode:
        return False
    waiting = bytearray(4)
    with socket.socket(fileno=os.dup(duplicate_fd)) as sock:
        fcntl.ioctl(sock, termios.FIONREAD, waiting)
        if any(waiting) or _received(sock) != bytes_received:
            return False
        sock.shutdown(socket.SHUT_RD)
    return True


def end_writing(duplicate_fd: int, inode: int, bytes_received: int) -> bool:
    """Send the client of *duplicate_fd* the end of file, under the same conditions, but for what has come unread: a
    server that has read the end reads that no more.

    Returns, raises:
        As `end_reading`.
    """
    is_same = os.fstat(duplicate_fd).st_ino == inode
    with socket.socket(fileno=os.dup(duplicate_fd)) as sock:
        if not is_same or _received(sock) != bytes_received:
            return False
        sock.shutdown(socket.SHUT_WR)
    return True


def _received(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    received: int = _BYTES_RECEIVED.unpack(info)[0]
    return received
