"""The giver's side of hand-overs, without waiting: who waits for what is `exchange`'s or `aio`'s."""

from __future__ import annotations

import _socket
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from sockshare.core.errors import SockshareError
from sockshare.core.handover import (
    RETRY,
    Candidate,
    Decline,
    Declined,
    Ended,
    GiverEffect,
    GiverEvent,
    GiveUp,
    Giving,
    Keep,
    Kept,
    Release,
    Reported,
    SendCommit,
    SendWithdraw,
    Sent,
    Tick,
    Took,
    Unsent,
    choose,
)
from sockshare.kernel import lanes
from sockshare.kernel.descriptors import MOST, close_all
from sockshare.kernel.lanes import BadPacket, Cargo, Lane

#: Why a TLS connection stays.
TLS = (
    "can't hand over a TLS connection: its keys and sequence numbers are in this process's memory; "
    "let the receiver accept it, or end TLS in front of both"
)
_FAMILY = _socket.socket.family.__get__
_TYPE = _socket.socket.type.__get__
_ACCEPTING = 30  # SO_ACCEPTCONN, asm-generic/socket.h


class Transfer:
    """One connection on its way.

    Attributes:
        over: Whether it is decided.
        kept: Why it is still the giver's, once over; None: it is the receiver's, and closed here.
    """

    __slots__ = (
        "connection",
        "ended",
        "family",
        "fd",
        "id",
        "kept",
        "outlet",
        "over",
        "protocol",
        "state",
        "tried",
        "type",
    )

    def __init__(self, connection: socket.socket, state: bytes) -> None:
        self.connection = connection
        self.state = state
        self.fd = connection.fileno()
        # As plain numbers, which socket.socket makes enums of: that would cost more than the system calls.
        self.family, self.type, self.protocol = _FAMILY(connection), _TYPE(connection), connection.proto
        self.outlet: Outlet | None = None
        self.id = 0
        self.over = False
        self.kept: Kept | OSError | None = None
        self.tried: set[int] = set()
        self.ended: Callable[[Transfer], None] | None = None

    def end(self, kept: Kept | OSError | None) -> None:
        self.kept, self.over, self.outlet = kept, True, None
        if self.ended is not None:
            self.ended(self)


class Outlet:
    """A lane to one receiver."""

    __slots__ = ("giving", "lane", "pid", "process", "transfers")

    def __init__(self, lane: Lane, process: str, pid: int) -> None:
        self.lane = lane
        self.process = process
        self.pid = pid
        self.giving = Giving()
        self.transfers: dict[int, Transfer] = {}


class Giver:
    """All outlets of a process. One thread at a time may use it; `epoll` tells when there is something to `pump`."""

    def __init__(self, lost: Callable[[int], None]) -> None:
        """*lost* is told the pid of each receiver whose lane has ended."""
        self.epoll = select.epoll()
        self.outlets: dict[int, Outlet] = {}  # by the receiver's pid
        self._by_fd: dict[int, Outlet] = {}
        self._lost = lost
        self._turn = 0

    def add(self, fd: int, process: str, pid: int) -> None:
        """*fd* is the end of a lane to *process*; it becomes this object's to close."""
        old = self.outlets.get(pid)
        if old is not None:
            self._read(old)
        if pid in self.outlets:  # it has one that is alive; it was asked for twice
            os.close(fd)
            return
        outlet = Outlet(Lane(fd), process, pid)
        try:
            self.epoll.register(fd, select.EPOLLIN)
        except BaseException:
            outlet.lane.close()
            raise
        self.outlets[pid] = self._by_fd[fd] = outlet

    def offer(
        self, transfers: Sequence[Transfer], pids: Iterable[int], deadline: float, route: str, key: bytes | None
    ) -> list[Transfer]:
        """Offer *transfers* to receivers among *pids*, until *deadline*; return those for which there is no room."""
        here = [outlet for pid in pids if (outlet := self.outlets.get(pid)) is not None]
        waiting = list(transfers)
        share = -(-len(waiting) // max(1, len(here)))  # of a batch, for each receiver, as far as they are equals
        while waiting:
            tried = waiting[0].tried
            open_to = [one for one in here if one.pid not in tried and not one.giving.ended] if tried else here
            candidates = [Candidate(one.process, one.pid, one.giving.load, one.giving.room) for one in open_to]
            index = choose(candidates, route, self._turn, key)
            if index is None:
                break
            self._turn += 1
            outlet = open_to[index]
            batch = _packet_of(waiting, min(share if key is None else len(waiting), outlet.giving.room))
            if not self._offer(outlet, batch, deadline):
                here.remove(outlet)
                continue
            del waiting[: len(batch)]
        return waiting

    def _offer(self, outlet: Outlet, batch: Sequence[Transfer], deadline: float) -> bool:
        size = sum(min(len(one.state), lanes.INLINE) for one in batch) + 24 * len(batch)
        if not outlet.lane.has_room(size, outlet.giving.undecided):
            return False
        ids = outlet.giving.offer(len(batch), deadline)
        cargoes = []
        for id, one in zip(ids, batch, strict=True):
            outlet.transfers[id] = one
            one.outlet, one.id = outlet, id
            one.tried.add(outlet.pid)
            cargoes.append(Cargo(id, one.fd, one.family, one.type, one.protocol, one.state))
        try:
            outlet.lane.send_offer(cargoes)
        except EOFError:
            self._end(outlet)  # and they are kept for that reason
        except OSError as error:
            # Not sent: nobody has seen it. ETOOMANYREFS, EMFILE of a memfd, a descriptor closed by another thread.
            for one in batch:
                del outlet.transfers[one.id]
            outlet.giving.feed(Declined(ids, Decline.UNREADABLE))
            for one in batch:
                one.end(Kept.FULL if isinstance(error, BlockingIOError) else error)
        return True

    def pump(self, timeout: float = 0.0) -> None:
        """Take what the receivers have said; wait for it up to *timeout* seconds."""
        self.take(self.epoll.poll(timeout))

    def take(self, ready: Iterable[tuple[int, int]]) -> None:
        """Take what the receivers have said, of those that `epoll` said are *ready*."""
        for fd, _ in ready:
            outlet = self._by_fd.get(fd)
            if outlet is not None:
                self._read(outlet)

    def _read(self, outlet: Outlet) -> None:
        try:
            taken: list[int] = []
            while (packet := outlet.lane.receive()) is not None:
                if packet.kind == lanes.TAKE:
                    taken += packet.ids
                elif packet.kind == lanes.DECLINE:
                    self._feed(outlet, Declined(packet.ids, Decline(packet.reason)))
                if packet.kind != lanes.DECLINE:
                    outlet.giving.feed(Reported(packet.received, packet.load, packet.window))
            # Said together, as far as they came together: a packet costs as much as a connection.
            if taken:
                self._feed(outlet, Took(taken))
        except EOFError:
            self._end(outlet)
        except (BadPacket, OSError):
            # It lives, and a lane that ends without a word would tell it that we don't.
            self._decide(outlet, list(outlet.transfers.values()), Kept.GARBLED)
            self._end(outlet)

    def tick(self, now: float) -> None:
        """Withdraw what was not taken in time."""
        for outlet in list(self.outlets.values()):
            deadline = outlet.giving.deadline
            if deadline is not None and deadline <= now:
                self._feed(outlet, Tick(), now)

    @property
    def deadline(self) -> float | None:
        """When `tick` is due."""
        return min((due for one in self.outlets.values() if (due := one.giving.deadline) is not None), default=None)

    def decide(self, transfers: Iterable[Transfer], reason: Kept = Kept.LATE) -> None:
        """Have *transfers* back, for *reason*, as far as they are not the receiver's. All are over on return."""
        of: dict[Outlet, list[Transfer]] = {}
        for one in transfers:
            if one.outlet is not None:
                of.setdefault(one.outlet, []).append(one)
        for outlet, mine in of.items():
            self._decide(outlet, mine, reason)

    def _decide(self, outlet: Outlet, transfers: Sequence[Transfer], reason: Kept) -> None:
        giving = outlet.giving
        self._perform(outlet, giving.withdraw([one.id for one in transfers], time.monotonic(), reason))
        while any(giving.has(one.id) for one in transfers):  # as long as the lane does not take the word
            time.sleep(RETRY)
            self._feed(outlet, Tick(), time.monotonic())
        for one in transfers:
            if one.outlet is outlet and not one.over:  # whoever was about to release it was interrupted
                self._release(outlet, one)

    def _feed(self, outlet: Outlet, event: GiverEvent, now: float = 0.0) -> None:
        self._perform(outlet, outlet.giving.feed(event, now))

    def _perform(self, outlet: Outlet, effects: Iterable[GiverEffect]) -> None:
        for effect in effects:
            if isinstance(effect, SendCommit):
                self._say(outlet, lanes.COMMIT, effect.ids)
            elif isinstance(effect, SendWithdraw):
                self._say(outlet, lanes.WITHDRAW, effect.ids)
            elif isinstance(effect, Release):
                for id in effect.ids:
                    self._release(outlet, outlet.transfers[id])
            elif isinstance(effect, GiveUp):
                self._close(outlet)
                self._lost(outlet.pid)
            else:
                self._keep(outlet, effect)

    def _release(self, outlet: Outlet, transfer: Transfer) -> None:
        # detach and close: the object's own close() waits for files made of it.
        close_all(fd for fd in (transfer.connection.detach(),) if fd >= 0)
        outlet.transfers.pop(transfer.id, None)
        transfer.end(None)

    def _keep(self, outlet: Outlet, effect: Keep) -> None:
        for id in effect.ids:
            transfer = outlet.transfers.pop(id, None)
            if transfer is not None:
                transfer.end(effect.reason)

    def _say(self, outlet: Outlet, kind: int, ids: list[int]) -> None:
        try:
            outlet.lane.send(kind, ids)
        except EOFError:
            self._end(outlet, ids)
        except OSError:
            self._feed(outlet, Unsent(ids), time.monotonic())
        else:
            self._feed(outlet, Sent(ids))

    def _end(self, outlet: Outlet, unsent: Sequence[int] = ()) -> None:
        self._close(outlet)
        self._feed(outlet, Ended(unsent))
        self._lost(outlet.pid)

    def _close(self, outlet: Outlet) -> None:
        fd = outlet.lane.fileno()
        if fd < 0:
            return
        # Unregister before closing: a forked child may have a copy of it (epoll(7), Q6).
        self.epoll.unregister(fd)
        del self._by_fd[fd]
        if self.outlets.get(outlet.pid) is outlet:
            del self.outlets[outlet.pid]
        outlet.lane.close()

    def close(self) -> None:
        """Have everything back that is not decided, and end all lanes."""
        for outlet in list(self.outlets.values()):
            # WITHDRAW first: a lane that ends without it says that this process is dead.
            self._decide(outlet, list(outlet.transfers.values()), Kept.SHUT)
            self._close(outlet)
        self.epoll.close()

    def forget(self) -> None:
        """In a forked child: close the copies of the lanes, and say nothing."""
        for outlet in self.outlets.values():
            outlet.lane.close()
        self.outlets.clear()
        self._by_fd.clear()
        self.epoll.close()


def _packet_of(waiting: Sequence[Transfer], most: int) -> list[Transfer]:
    """As many of *waiting* as one packet may carry: descriptors, and bytes of state."""
    descriptors = size = 0
    batch: list[Transfer] = []
    for one in waiting[:most]:
        apart = len(one.state) > lanes.INLINE
        descriptors += 1 + apart
        size += 0 if apart else len(one.state)
        if batch and (descriptors > MOST or size > lanes.INLINE):
            break
        batch.append(one)
    return batch


def check_all(items: Iterable[tuple[socket.socket, bytes]]) -> list[Transfer]:
    """A transfer of each connection with its state.

    Raises:
        ValueError: One of them is there twice.
        TypeError, ValueError, SockshareError: As `check`.
    """
    transfers = [check(connection, state) for connection, state in items]
    if len({one.fd for one in transfers}) < len(transfers):
        raise ValueError("can't hand over the same connection twice")
    return transfers


def check(connection: object, state: object) -> Transfer:
    """A transfer of *connection* with *state*.

    Raises:
        TypeError: It is no socket, or its TLS state can't move.
        ValueError: The state is too long, or a file made of the socket is open.
        SockshareError: It is not connected.
    """
    ssl = sys.modules.get("ssl")  # where it was not imported, it can't be one
    if ssl is not None and isinstance(connection, (ssl.SSLSocket, ssl.SSLObject)):
        raise TypeError(TLS)
    if not isinstance(connection, socket.socket):
        raise TypeError(f"can't hand over a {type(connection).__name__}: a connected socket.socket is needed")
    if not isinstance(state, (bytes, bytearray, memoryview)):
        raise TypeError(f"can't hand over a state that is a {type(state).__name__}: bytes are needed")
    state = bytes(state)
    if len(state) > lanes.LONGEST_STATE:
        raise ValueError(
            f"can't hand over a state of {len(state)} bytes: at most {lanes.LONGEST_STATE} (16 MiB) travel; send the "
            f"rest over the connection's own protocol, or a file"
        )
    if getattr(connection, "_io_refs", 0) > 0:
        raise ValueError(
            "can't hand over the connection: a file made of it (makefile) is open, and may have read ahead; close it"
        )
    try:
        connection.getpeername()
    except OSError as error:
        raise not_connected(connection, error) from None
    return Transfer(connection, state)


def not_connected(connection: socket.socket, error: OSError) -> SockshareError:
    """Why it has no peer, as a sentence."""
    if connection.fileno() < 0:
        return SockshareError("can't hand over the connection: the socket is closed")
    try:
        if connection.getsockopt(socket.SOL_SOCKET, _ACCEPTING):
            return SockshareError("can't hand over a listening socket: what listens is shared; use duplicate() for it")
    except OSError:
        pass
    return SockshareError(
        f"can't hand over the connection: it has no peer, or its peer has reset it ({error.strerror})"
    )
