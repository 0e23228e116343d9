"""System calls that Python's `os` does not have, as plain functions: a negative errno instead of an exception.

They raise nothing, because their main user is a thread in which no traceback could be shown (`epoll_control`).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

EPOLL_CTL_ADD = 1
EPOLL_CTL_DEL = 2
EPOLL_CTL_MOD = 3
CLOSE_RANGE_UNSHARE = 2
KCMP_FILE = 0
KCMP_EPOLL_TFD = 7
LAST_DESCRIPTOR = 0xFFFFFFFF

_MACHINE = os.uname().machine
# Calls since 424 have one number everywhere but on alpha. kcmp is older: its number is known where it was looked up.
_PIDFD_OPEN, _CLOSE_RANGE, _PIDFD_GETFD = 434, 436, 438
_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272}.get(_MACHINE) if sys.maxsize > 2**32 else None
_NOBODY = struct.pack("=H14x", 0)  # struct sockaddr of AF_UNSPEC
# struct epoll_event is packed on x86_64 and on no other machine (epoll_ctl(2), <sys/epoll.h>).
_EVENT = struct.Struct("=IQ" if _MACHINE == "x86_64" else "@IQ")

_libc = ctypes.CDLL(None, use_errno=True)
_long = ctypes.c_long
# epoll_ctl keeps the GIL: two of them in a row must not be parted by another thread's turn (`epoll_control`).
_epoll_ctl = ctypes.PyDLL(None, use_errno=True).epoll_ctl


def pidfd_open(pid: int) -> int:
    """pidfd_open(2): a descriptor of process *pid*."""
    return _call(_PIDFD_OPEN, pid, 0)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): a duplicate of descriptor *fd* of another process (Linux 5.6)."""
    return _call(_PIDFD_GETFD, pidfd, fd, 0)


def close_range(first: int, last: int, flags: int = 0) -> int:
    """close_range(2): close the descriptors *first* to *last*, both included (Linux 5.9)."""
    return _call(_CLOSE_RANGE, first, last, flags)


def dup2(fd: int, number: int) -> int:
    """dup2(2)."""
    result: int = _libc.dup2(fd, number)
    return result if result >= 0 else -ctypes.get_errno()


def disconnect(fd: int) -> int:
    """connect(2) of ``AF_UNSPEC``: a datagram socket has no peer any more."""
    result: int = _libc.connect(fd, _NOBODY, len(_NOBODY))
    return result if result >= 0 else -ctypes.get_errno()


def epoll_ctl(epfd: int, operation: int, fd: int, events: int = 0, data: int = 0) -> int:
    """epoll_ctl(2), with all 64 bits of *data*, which `select.epoll` does not offer."""
    result: int = _epoll_ctl(epfd, operation, fd, _EVENT.pack(events, data))
    return result if result >= 0 else -ctypes.get_errno()


def kcmp_file(pid: int, fd: int, other_pid: int, other_fd: int) -> int:
    """kcmp(2), KCMP_FILE: 0 one open file description, 1 and 2 less and greater in some stable order, 3 neither."""
    return _kcmp(pid, other_pid, KCMP_FILE, fd, other_fd)


def kcmp_epoll(pid: int, fd: int, other_pid: int, epfd: int, tfd: int, offset: int) -> int:
    """kcmp(2), KCMP_EPOLL_TFD: 0 if entry *offset* for number *tfd* in *epfd* of *other_pid* is *fd* of *pid*."""
    slot = ctypes.create_string_buffer(struct.pack("=III", epfd, tfd, offset))
    return _kcmp(pid, other_pid, KCMP_EPOLL_TFD, fd, ctypes.addressof(slot))


def _kcmp(pid: int, other_pid: int, kind: int, first: int, second: int) -> int:
    return -38 if _KCMP is None else _call(_KCMP, pid, other_pid, kind, first, second)  # ENOSYS


def _call(number: int, *arguments: int) -> int:
    # Each argument as a long: ctypes would pass a Python int as an int, and syscall(2) reads whole registers.
    result: int = _libc.syscall(_long(number), *[_long(argument) for argument in arguments])
    return result if result >= 0 else -ctypes.get_errno()


_libc.syscall.restype = _long
_libc.dup2.argtypes = [ctypes.c_int, ctypes.c_int]
_epoll_ctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p]
