"""The memory of this process: how much is resident, and giving back what is free."""

from __future__ import annotations

import ctypes
import mmap


def resident() -> int:
    """Bytes of this process that are in memory (proc_pid_statm(5)).

    Raises:
        OSError: /proc can't be read.
    """
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def give_back() -> None:
    """Give free memory back to the kernel (malloc_trim(3)), where the C library has a call for it.

    glibc keeps what was freed below anything that is still in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
