"""The processes that hold a shared socket, whether they ever asked for it or not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sockshare.core.command_lines import in_words
from sockshare.kernel import holders, peers, processes
from sockshare.kernel.holders import Scan

from .worker import Worker

#: Seconds that a look at all processes may take. On a machine with 100 processes it takes 5 ms.
_WITHIN = 0.5
#: How many processes beside the managed ones are shown of a socket.
MOST = 256


class Others(NamedTuple):
    """Who has one socket open beside the processes that are known to."""

    shown: list[dict[str, Any]]  # as the status has them
    left_out: int  # how many more there are


class Holders:
    """Looks through all processes for the sockets that *shared* has, by name: inode and descriptor.

    It does so one look at a time: everybody may ask for the status, as often as he likes.

    Attributes:
        worker: The thread of what people ask.
    """

    def __init__(self, shared: Mapping[str, tuple[int, int]]) -> None:
        self._shared = shared
        self.worker = Worker("holders")
        self._turn = asyncio.Lock()
        self._last: tuple[float, Scan] | None = None

    async def look(self) -> Scan:
        """What a look finds that begins after this call; those who ask while one goes on share the next."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        async with self._turn:
            if self._last is None or self._last[0] < asked:
                began = loop.time()
                inodes = [inode for inode, _ in self._shared.values()]
                self._last = began, await self.worker.do(holders.scan, inodes, _WITHIN)
            return self._last[1]

    async def others(
        self, scan: Scan, inode: int, names: Mapping[int, str], known: Collection[int], most: int = MOST
    ) -> Others:
        """Who beside *known* has the socket *inode* by *scan*: pid, command, and the process of *names* that it is or
        descends from. Those that descend from none come first: of them nobody but the kernel knows."""
        found = sorted(pid for pid, inodes in scan.holders.items() if inode in inodes and pid not in known)
        return await self.worker.do(_describe, found, names, most) if found else Others([], 0)


def source(manager: int) -> frozenset[int]:
    """The processes that hold every socket by their office: the manager, the host and the broker."""
    return frozenset((manager, os.getppid(), os.getpid()))


def _describe(pids: list[int], names: Mapping[int, str], most: int) -> Others:
    below = {pid: next((names[one] for one in peers.ancestors(pid) if one in names), None) for pid in pids}
    shown = []
    for pid in sorted(pids, key=lambda pid: (below[pid] is not None, pid))[:most]:
        try:
            command = processes.command(pid)
        except OSError:
            continue  # it has ended
        shown.append({"pid": pid, "process": below[pid], "command": in_words(command)})
    return Others(shown, max(0, len(pids) - most))
