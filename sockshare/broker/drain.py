"""Watches the connections of an old process, for what its end costs; and ends each as it is idle, once told to.

That is draining from outside, for programs that would die of their stop signal with requests in their hands.
Event-driven servers drop a request that comes in the instant between the last look and the end of file; clients that
keep connections alive know that race from every server and ask again (RFC 9112, 9.3.1), as browsers and pools do for
requests that may be repeated.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from sockshare.core.cost import Cost, Fate, fate, is_unanswered, total
from sockshare.core.idleness import History, Sample, Verdict, is_answered
from sockshare.kernel import closing, connections, listeners, processes, strike
from sockshare.kernel.connections import Connection, Ends

log = logging.getLogger(__name__)

#: Seconds between two looks, and the share of one processor that looking may take.
_LOOK_EVERY = 0.01
_SHARE = 0.12
#: Seconds between two looks for connections that a worker has accepted; and where there is one that was not there.
_SEARCH_EVERY = 0.25
_SEARCH_NEW_EVERY = 0.02
_TELL_EVERY = 1.0
#: Seconds that a client has for its first request. (One that can't be suspended still accepts.)
_ASKS_WITHIN = 0.3
#: Seconds after which a server that was shown the end of a connection, and does not close it, has it closed.
_CLOSES_WITHIN = 0.05
#: Seconds that the kernel has to tell of connections which have ended; it does so a moment later.
_TOLD_WITHIN = 0.1
#: Why nothing is known of other connections.
NO_TCP = "only TCP connections can be judged from outside"
#: The states of a connection that its own side has closed first, in good order.
_CLOSED_HERE = (connections.FIN_WAIT1, connections.FIN_WAIT2, connections.CLOSING, connections.TIME_WAIT)


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


class _Watched:
    """One connection of the old process."""

    __slots__ = ("ended", "family", "history", "last", "seen", "since", "struck", "struck_at")

    def __init__(self, family: int, seen: Connection, since: float) -> None:
        self.family = family
        self.seen = seen
        self.since = since
        self.history = History()
        self.struck: Sample | None = None  # as it was when its server was shown its end
        self.struck_at = 0.0
        self.last: Connection | None = None  # as the kernel told of its end
        self.ended = 0.0  # when it was first seen to be closed; 0: it is open


class Drainer:
    """Watches the connections of *pid*'s process tree on *addresses*, and ends the idle ones once told to.

    It is to watch from the moment of the suspension: what it saw then decides what TCP_INFO alone can't.

    Args:
        unseen: Why there may be more to see of its end than here; empty: there is not.
    """

    def __init__(self, pid: int, addresses: Iterable[Address], *, unseen: str = "") -> None:
        self.pid = pid
        self._addresses = list(addresses)
        self._ending = False
        self._stopping = False
        self._beside = unseen
        self._dead = False
        self._stopped = False
        self._watched: dict[int, _Watched] = {}  # by cookie
        self._ended: dict[int, _Watched] = {}  # those of which it is not known yet how
        self._settled: set[int] = set()  # cookies of connections that another process has, or that are judged
        self._cost = Cost()
        self._unseen = 0
        self._owned: dict[int, tuple[int, int]] = {}  # inode: pid and descriptor
        self._looked_for: frozenset[int] = frozenset()  # inodes that were there when it was last searched
        self._family: dict[int, None] = {}
        self._searched = 0.0
        self._refusal = "" if self._addresses else NO_TCP  # why it can't look
        self._powerless = ""  # why it can look, and do nothing
        self._ends: Ends | None = None
        self._untold = ""
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="drain")

    def end_idle(self) -> None:
        """From now on, end what is idle."""
        self._ending = True

    def expect_stop(self) -> None:
        """Its stop signal is on its way: what ends from now on ends by it."""
        self._stopping = True

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True

    async def run(self, tell: Callable[[Left], None], drained: Callable[[str], None]) -> None:
        """Look until `stop`.

        Args:
            tell: Called with what is left, about once a second, once `end_idle` was called.
            drained: Called once, when nothing is left then, or nothing can be ended; with what came of it, in words.
        """
        loop = asyncio.get_running_loop()
        told, is_drained = loop.time(), False
        try:
            while not self._stopped:
                left, cost = await loop.run_in_executor(self._looker, self._look)
                if self._ending and not is_drained and not self._stopped:
                    why = self._refusal or self._powerless
                    is_drained = bool(why) or left == Left(0, 0)
                    if is_drained:
                        drained(f"not drained: {why}" if why else "no connection left")
                    elif loop.time() - told >= _TELL_EVERY:
                        told = loop.time()
                        tell(left)
                await asyncio.sleep(max(_LOOK_EVERY, cost * (1 - _SHARE) / _SHARE))
        finally:
            self._looker.submit(self._close)
            self._looker.shutdown(wait=False)

    async def cost(self) -> Cost:
        """What the end of the process has cost, which has died."""
        if self._stopped:
            return Cost(unseen="nobody looked on as it ended")
        return await asyncio.get_running_loop().run_in_executor(self._looker, self._last_look)

    def _last_look(self) -> Cost:
        self._dead = True
        if not (self._searched or self._refusal):
            self._refusal = "it ended before anybody had looked"
        began = time.monotonic()
        deadline, soonest = began + _TOLD_WITHIN, began + _LOOK_EVERY
        while not self._refusal:
            self._look()
            if not self._ended and time.monotonic() >= soonest:  # of some the kernel alone knows
                break
            if time.monotonic() >= deadline:
                self._judge_ended(at_last=True)
                break
            time.sleep(_LOOK_EVERY / 4)
        if self._refusal:
            return self._cost._replace(unseen=self._refusal)
        if self._unseen:
            count = f"{self._unseen} connection{'' if self._unseen == 1 else 's'}"
            why = self._untold or "the kernel has not told of their end"
            return self._cost._replace(unseen=f"{count} may have had a request in hand at the end, and {why}")
        return self._cost._replace(unseen=self._beside)

    def _close(self) -> None:
        if self._ends is not None:
            self._ends.close()
            self._ends = None

    def _look(self) -> tuple[Left, float]:
        began = time.thread_time()
        left = Left(0, 0)
        if self._refusal:
            return left, 0.0
        try:
            if self._ends is None and not self._untold:
                self._listen()
            left = self._count(again=False)
            if self._ending and left == Left(0, 0):
                # It may have accepted one since its descriptors were looked through.
                left = self._count(again=True)
            self._hear()
            self._judge_ended()
        except OSError as error:
            self._refusal = error.strerror or str(error)
        return left, time.thread_time() - began

    def _count(self, *, again: bool) -> Left:
        idle = busy = 0
        present = {
            one.inode: (address.family, one)
            for address in self._addresses
            for one in connections.established(*address)
            if one.inode
        }
        self._search(frozenset(present), again=again)
        if self._ends is not None:
            self._settled.update(
                one.cookie
                for inode, (_, one) in present.items()
                if inode in self._looked_for and inode not in self._owned
            )
        now = time.monotonic()
        open_now = set()
        for inode in present.keys() & self._owned.keys():
            family, one = present[inode]
            open_now.add(one.cookie)
            watched = self._watched.get(one.cookie)
            if watched is None:
                watched = self._watched[one.cookie] = _Watched(family, one, now)
            watched.seen = one
            sample = _sample(one)
            if sample is None:
                busy += 1
            elif watched.history.add(sample) is Verdict.IDLE:
                idle += 1
                has_asked = watched.history.last.bytes_received > 0
                if self._may_end and (has_asked or now - watched.since >= _ASKS_WITHIN):
                    self._end(watched, now)
            else:
                busy += 1
                if watched.struck is not None:
                    self._end_struck(watched, now)
        for cookie in self._watched.keys() - open_now:
            watched = self._watched.pop(cookie)
            watched.ended = now
            self._ended[cookie] = watched
        return Left(idle, busy)

    @property
    def _may_end(self) -> bool:
        return self._ending and not (self._stopped or self._powerless)

    def _search(self, present: frozenset[int], *, again: bool) -> None:
        now = time.monotonic()
        is_new = not present <= self._looked_for
        if now - self._searched < (_SEARCH_NEW_EVERY if is_new else _SEARCH_EVERY) and not again:
            return
        self._searched = now
        self._looked_for = present
        owned: dict[int, tuple[int, int]] = {}
        # A worker whose parent has ended is nobody's descendant any more.
        self._family |= dict.fromkeys(processes.tree(self.pid))
        for pid in list(self._family):
            try:
                for inode, fd in processes.socket_descriptors(pid).items():
                    owned.setdefault(inode, (pid, fd))
            except ProcessLookupError:
                del self._family[pid]
            except PermissionError:
                if processes.alive(pid):  # a zombie's directory is root's
                    why = f"the connections of pid {pid} can't be seen: that takes CAP_SYS_PTRACE"
                    raise PermissionError(errno.EACCES, why) from None
        self._owned = owned

    # How connections have ended.

    def _listen(self) -> None:
        try:
            self._ends = Ends({address.port for address in self._addresses})
        except PermissionError:
            self._untold = "to hear how they ended takes CAP_NET_ADMIN"
        except OSError as error:
            self._untold = f"the kernel does not tell how they ended ({error.strerror})"

    def _hear(self) -> None:
        if self._ends is None:
            return
        try:
            told = self._ends.read()
        except OSError as error:
            self._untold = f"the kernel had more to tell than could be heard ({error.strerror})"
            self._close()
            return
        for one in told:
            watched = self._ended.get(one.cookie) or self._watched.get(one.cookie)
            if watched is not None:
                watched.last = one
            elif self._dead and one.cookie not in self._settled and (sample := _sample(one)) is not None:
                # It began and ended between two looks, as the process died: its, perhaps.
                self._unseen += is_unanswered(sample)
            self._settled.discard(one.cookie)

    def _judge_ended(self, *, at_last: bool = False) -> None:
        for cookie, watched in list(self._ended.items()):
            end = self._fate(watched, at_last=at_last)
            if end is None:
                continue
            del self._ended[cookie]
            if watched.last is None:  # else the kernel has told of it
                self._settled.add(cookie)
            if end in (Fate.CUT, Fate.MET):
                self._cost = total((self._cost, Cost(cut=1) if end is Fate.CUT else Cost(met=1)))
            elif end is Fate.UNSEEN and (self._stopping or not processes.alive(self.pid)):
                self._unseen += 1

    def _fate(self, watched: _Watched, *, at_last: bool) -> Fate | None:
        """How a connection has ended; None if that may be told yet."""
        if watched.seen.state == connections.CLOSE_WAIT or watched.seen.info is None:
            return Fate.WHOLE  # its client had gone before
        if watched.last is not None and _judged(watched, watched.last, closed_by_server=True) is Fate.WHOLE:
            return Fate.WHOLE  # most are: whoever closed it
        waits = self._ends is not None and not at_last and time.monotonic() - watched.ended < _TOLD_WITHIN
        if watched.last is None and waits and not self._dead:
            return None
        now = connections.find(watched.family, watched.seen)
        if now is not None and now.inode and now.state not in _CLOSED_HERE:
            return Fate.WHOLE  # somebody else has it
        last = now if now is not None and now.info is not None else watched.last
        if last is None and waits:
            return None
        return _judged(watched, last, closed_by_server=now is not None and now.state in _CLOSED_HERE)

    # Ending what is idle.

    def _end(self, watched: _Watched, now: float) -> None:
        if watched.struck is not None:
            self._end_struck(watched, now)
        elif self._strike(watched.seen, strike.end_reading):
            watched.struck, watched.struck_at = watched.history.last, now

    def _end_struck(self, watched: _Watched, now: float) -> None:
        """Close a connection for a server that was shown its end and leaves it open, so that its client need not wait.

        Some read no more then, and close it when their time for idle connections is over. One that has read a request
        all the same has its time for the answer.
        """
        assert watched.struck is not None
        sample = watched.history.last
        is_idle = watched.history.verdict is Verdict.IDLE
        if sample.bytes_sent > watched.struck.bytes_sent and (is_idle or is_answered(sample)):
            read = sample.bytes_received - sample.receive_queue
            watched.struck, watched.struck_at = sample._replace(receive_queue=0, bytes_received=read), now
        is_unread = 0 < sample.receive_queue == sample.bytes_received - watched.struck.bytes_received
        if now - watched.struck_at >= _CLOSES_WITHIN and (is_idle or is_unread):
            watched.struck_at = now
            self._strike(watched.seen, strike.end_writing)

    def _strike(self, one: Connection, blow: Callable[[int, int, int], bool]) -> bool:
        pid, fd = self._owned[one.inode]
        try:
            duplicate = strike.duplicate(pid, fd)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            self._powerless = error.strerror or str(error)
            return False
        except OSError:
            return False  # it is closed
        try:
            info = one.info
            assert info is not None
            return blow(duplicate, one.inode, info.bytes_received)
        except OSError as error:
            log.debug("pid %d: connection %d: %s", pid, one.inode, error)  # its client has closed it
            return False
        finally:
            closing.apart(lambda: os.close(duplicate))  # its program may have chosen that it lingers


def _judged(watched: _Watched, last: Connection | None, *, closed_by_server: bool) -> Fate:
    before, verdict = watched.history.last, watched.history.verdict
    if watched.struck is not None:
        before, verdict = watched.struck, Verdict.IDLE
    return fate(before, verdict, None if last is None else _sample(last), closed_by_server=closed_by_server)


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


def _sample(one: Connection) -> Sample | None:
    info = one.info
    if info is None:
        return None
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
