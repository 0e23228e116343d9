"""System calls that the kernel refuses: a seccomp filter of one thread, for errors that can't be provoked otherwise."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

#: Numbers of system calls that send on a socket: sendto, sendmsg.
_SENDING = {"x86_64": (44, 46), "aarch64": (206, 211)}
_SET_SECCOMP, _FILTER, _SET_NO_NEW_PRIVS = 22, 2, 38  # linux/prctl.h, linux/seccomp.h
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _FIRST_ARGUMENT = 0, 16  # struct seccomp_data

supported = platform.machine() in _SENDING


def refused(call: Callable[[], _T], fd: int, error: int) -> _T:
    """What *call* returns in a thread that can send nothing on *fd*: the kernel says *error*."""
    outcome: list[_T] = []

    def run() -> None:
        _install(fd, error)
        outcome.append(call())

    thread = threading.Thread(target=run)  # a filter ends with its thread (seccomp(2))
    thread.start()
    thread.join(30)
    assert outcome, "the call has failed, or goes on"
    return outcome[0]


def _install(fd: int, error: int) -> None:
    sendto, sendmsg = _SENDING[platform.machine()]
    code = [
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 1, 0, sendto),
        (_EQUAL, 0, 3, sendmsg),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 0, 1, fd),
        (_RETURN, 0, 0, _ERRNO | error),
        (_RETURN, 0, 0, _ALLOW),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    head = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(head), 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
