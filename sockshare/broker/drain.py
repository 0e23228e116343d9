"""Draining a process from outside: each of its connections is ended as soon as it is idle.

For programs that would die of their stop signal with requests in their hands. Event-driven servers drop a request that
comes in the instant between the last look and the end of file; clients that keep connections alive know that race from
every server and ask again (RFC 9112, 9.3.1), as browsers and pools do for requests that may be repeated.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from sockshare.core.idleness import History, Sample, Verdict
from sockshare.kernel import closing, connections, listeners, processes, strike
from sockshare.kernel.connections import Connection

log = logging.getLogger(__name__)

#: Seconds between two looks, and the share of one processor that looking may take.
_LOOK_EVERY = 0.01
_SHARE = 0.12
#: Seconds between two looks for connections that a worker has accepted meanwhile.
_SEARCH_EVERY = 0.25
_TELL_EVERY = 1.0


class Address(NamedTuple):
    """Where a shared TCP socket listens."""

    family: int
    port: int
    host: str


class Left(NamedTuple):
    """What the old process has left."""

    idle: int
    busy: int

    def __str__(self) -> str:
        total = self.idle + self.busy
        return f"{total} connection{'' if total == 1 else 's'} left, {self.idle} idle, {self.busy} busy"


class Drainer:
    """Watches the connections of *pid*'s process tree on *addresses*, and ends the idle ones once told to.

    It is to watch from the moment of the suspension: what it saw then decides what TCP_INFO alone can't.
    """

    def __init__(self, pid: int, addresses: Iterable[Address]) -> None:
        self.pid = pid
        self._addresses = list(addresses)
        self._ending = False
        self._stopped = False
        self._histories: dict[int, History] = {}
        self._struck: set[int] = set()
        self._owned: dict[int, tuple[int, int]] = {}  # inode: pid and descriptor
        self._searched = 0.0
        self._refusal = "" if self._addresses else "only TCP connections can be judged from outside"
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="drain")

    def end_idle(self) -> None:
        """From now on, end what is idle."""
        self._ending = True

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True

    async def run(self, tell: Callable[[Left], None]) -> str:
        """Until nothing is left, once `end_idle` was called, or `stop`; what came of it, in words.

        Args:
            tell: Called with what is left, about once a second.
        """
        loop = asyncio.get_running_loop()
        told = loop.time()
        try:
            while not self._stopped:
                left, cost = await loop.run_in_executor(self._looker, self._look)
                if self._refusal:
                    while not (self._ending or self._stopped):  # nobody listens before
                        await asyncio.sleep(_LOOK_EVERY)
                    return f"not drained: {self._refusal}"
                if self._ending and left == Left(0, 0):
                    return "no connection left"
                if self._ending and loop.time() - told >= _TELL_EVERY:
                    told = loop.time()
                    tell(left)
                await asyncio.sleep(max(_LOOK_EVERY, cost * (1 - _SHARE) / _SHARE))
            return "stopped"
        finally:
            self._looker.shutdown(wait=False)

    def _look(self) -> tuple[Left, float]:
        began = time.thread_time()
        left = Left(0, 0)
        try:
            left = self._count(again=False)
            if self._ending and left == Left(0, 0):
                # It may have accepted one since its descriptors were looked through.
                left = self._count(again=True)
        except OSError as error:
            self._refusal = error.strerror or str(error)
        return left, time.thread_time() - began

    def _count(self, *, again: bool) -> Left:
        idle = busy = 0
        self._search(again=again)
        present = {
            one.inode: one for address in self._addresses for one in connections.established(*address) if one.inode
        }
        # The kernel numbers sockets anew: what is known of one that is gone must not be said of another.
        self._histories = {inode: history for inode, history in self._histories.items() if inode in present}
        self._struck &= present.keys()
        for inode in present.keys() & self._owned.keys():
            one = present[inode]
            if one.info is None:
                busy += 1
            elif self._histories.setdefault(inode, History()).add(_sample(one)) is Verdict.IDLE:
                idle += 1
                if self._ending and not self._stopped:
                    self._strike(one)
            else:
                busy += 1
        return Left(idle, busy)

    def _search(self, *, again: bool) -> None:
        now = time.monotonic()
        if now - self._searched < _SEARCH_EVERY and not again:
            return
        self._searched = now
        owned: dict[int, tuple[int, int]] = {}
        for pid in processes.tree(self.pid):
            try:
                for inode, fd in processes.socket_descriptors(pid).items():
                    owned.setdefault(inode, (pid, fd))
            except ProcessLookupError:
                continue
            except PermissionError:
                if processes.alive(pid):  # a zombie's directory is root's
                    raise
        self._owned = owned

    def _strike(self, one: Connection) -> None:
        if one.inode in self._struck:
            return
        pid, fd = self._owned[one.inode]
        try:
            duplicate = strike.duplicate(pid, fd)
        except ProcessLookupError:
            return
        except PermissionError as error:
            self._refusal = error.strerror or str(error)
            return
        except OSError:
            return  # it is closed
        try:
            assert one.info is not None
            if strike.end_reading(duplicate, one.inode, one.info.bytes_received):
                self._struck.add(one.inode)
        except OSError as error:
            log.debug("pid %d: connection %d: %s", pid, one.inode, error)  # its client has closed it
        finally:
            closing.apart(lambda: os.close(duplicate))  # its program may have chosen that it lingers


def has_connections(pid: int, addresses: Iterable[Address]) -> bool:
    """Whether the process tree of *pid* has a connection on one of *addresses*.

    Raises:
        OSError: It can't be told (PermissionError: a process may not be looked into).
    """
    present = [one for address in addresses for one in connections.established(*address) if one.inode]
    return any(connections.connections_of(processes.tree(pid), present).values())


def address_of(fd: int) -> Address | None:
    """Where the TCP socket *fd* listens; None for any other socket."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        if not listeners.is_tcp(sock):
            return None
        host, port, *_ = sock.getsockname()
        return Address(int(sock.family), port, host)


def _sample(one: Connection) -> Sample:
    info = one.info
    assert info is not None
    return Sample(
        receive_queue=one.receive_queue,
        notsent=info.notsent,
        unacked=info.unacked,
        segment=info.smss,
        bytes_received=info.bytes_received,
        bytes_sent=info.bytes_sent,
        segments_received=info.segs_in,
        data_segments_received=info.data_segs_in,
        last_received=info.last_data_received,
        last_sent=info.last_data_sent,
        last_acknowledged=info.last_ack_received,
    )
