"""What a process has taken from a shared socket, in a file that outlives its SIGKILL: written by the programs under
test (`apps/taking.py`), read by the tests.

The file is mapped memory: what was written when the process died is there. Layout, native 32-bit numbers: whether it is
*taking* (set just before accept or recv, cleared once what came is written down), how many entries, then the entries:
a number (a datagram's, or a client's port) and what became of it.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TAKEN, ANSWERED = 1, 2
_PAIR = struct.Struct("=II")
_SIZE = 1 << 20


class Entry(NamedTuple):
    """One thing that was taken."""

    number: int
    state: int  # TAKEN or ANSWERED


class Ledger:
    """The writer's side: one a process."""

    def __init__(self, directory: str) -> None:
        path = f"{directory}/ledger-{os.getpid()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(fd, _SIZE)
        self._map = mmap.mmap(fd, _SIZE)
        os.close(fd)
        self._count = 0

    def taking(self, whether: bool) -> None:
        """It is about to take something; or nothing was there."""
        _PAIR.pack_into(self._map, 0, int(whether), self._count)

    def took(self, number: int) -> int:
        """It has taken *number*; the place of the entry."""
        place = self._count
        _PAIR.pack_into(self._map, _PAIR.size * (place + 1), number, TAKEN)
        self._count = place + 1
        _PAIR.pack_into(self._map, 0, 0, self._count)
        return place

    def answered(self, place: int) -> None:
        """What was taken as the entry *place* is done with."""
        number, _ = _PAIR.unpack_from(self._map, _PAIR.size * (place + 1))
        _PAIR.pack_into(self._map, _PAIR.size * (place + 1), number, ANSWERED)


class Read(NamedTuple):
    """What a ledger says now."""

    pid: int
    taking: bool  # something that was taken may not be in `entries`
    entries: list[Entry]


def read(directory: Path) -> Iterator[Read]:
    """Every ledger in *directory*."""
    for path in sorted(directory.glob("ledger-*")):
        with path.open("rb") as file:
            taking, count = _PAIR.unpack(file.read(_PAIR.size))
            entries = [Entry(*pair) for pair in _PAIR.iter_unpack(file.read(_PAIR.size * count))]
        yield Read(int(path.name.rpartition("-")[2]), bool(taking), entries)
