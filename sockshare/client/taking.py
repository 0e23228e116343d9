"""The receiver's side of hand-overs, without waiting: who waits for what is `exchange`'s or `aio`'s."""

from __future__ import annotations

import select
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from sockshare.core.handover import (
    WINDOW,
    Committed,
    Ended,
    Intake,
    Offered,
    Own,
    ReceiverEffect,
    ReceiverEvent,
    SendDecline,
    SendTake,
    Taking,
    Unreadable,
    Withdrawn,
)
from sockshare.kernel import lanes
from sockshare.kernel.lanes import Arrival, BadPacket, Lane

#: Seconds between two reports of nothing but a changed load.
_REPORT_EVERY = 0.005


class Connection(socket.socket):
    """A connection that was handed over: a `socket.socket`, which counts as its process's load until it is closed."""

    __slots__ = ("_on_end",)

    _on_end: Callable[[Connection], None]

    def detach(self) -> int:
        """See `socket.socket.detach`."""
        self._end()
        return super().detach()

    def _real_close(self, *args: Any) -> None:
        super()._real_close(*args)  # type: ignore[misc]
        self._end()

    def _end(self) -> None:
        on_end = getattr(self, "_on_end", None)  # what dup() makes has none
        if on_end is not None:
            on_end(self)


class Inlet:
    """A lane from one giver."""

    __slots__ = ("arrivals", "lane", "process", "taking", "unsent")

    def __init__(self, lane: Lane, process: str, intake: Intake) -> None:
        self.lane = lane
        self.process = process
        self.taking = Taking(intake)
        self.arrivals: dict[int, Arrival] = {}
        self.unsent: deque[ReceiverEffect] = deque()  # for want of room in the lane


class Receiver:
    """All inlets of a process. Used with *lock* held; `epoll` tells when there is something to `pump`.

    Attributes:
        queue: What the program may have: received by `pop`.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.lock = lock
        self.epoll = select.epoll()
        self.intake = Intake(WINDOW)
        self.inlets: dict[int, Inlet] = {}  # by descriptor
        self.queue: deque[tuple[Inlet, Arrival]] = deque()
        self.open: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._load_reported = 0
        self._reported_at = 0.0

    def add(self, fd: int, process: str) -> None:
        """*fd* is the end of a lane from *process*; it becomes this object's to close."""
        inlet = Inlet(Lane(fd), process, self.intake)
        try:
            self.epoll.register(fd, select.EPOLLIN)
        except BaseException:
            inlet.lane.close()
            raise
        self.inlets[fd] = inlet
        self._report(inlet)

    @property
    def load(self) -> int:
        """Connections that this process has: those it was handed and has not closed, and those that wait."""
        return len(self.open) + self.intake.waiting

    def pump(self, timeout: float = 0.0) -> None:
        """Take what the givers have said; wait for it up to *timeout* seconds."""
        self.take(self.epoll.poll(timeout))

    def take(self, ready: Iterable[tuple[int, int]]) -> None:
        """Take what the givers have said, of those that `epoll` said are *ready*."""
        for fd, events in ready:
            inlet = self.inlets.get(fd)
            if inlet is None:
                continue
            if events & select.EPOLLOUT:
                self._flush(inlet)
            if events & ~select.EPOLLOUT:
                self._read(inlet)

    def pop(self, *, blocking: bool) -> tuple[Connection, bytes] | None:
        """The next connection that is this process's, with its state; None when none waits."""
        if not self.queue:
            return None
        inlet, arrival = self.queue.popleft()
        try:
            inlet.taking.received()
            state = arrival.state()
            connection = Connection(arrival.family, arrival.type, arrival.protocol, arrival.fd)
        except BaseException:  # no memory for its state
            arrival.drop()
            raise
        arrival.fd = -1
        connection._on_end = self._ended
        # Nobody else has it, so its O_NONBLOCK is this process's to choose; the giver's choice came with it.
        connection.setblocking(blocking)
        self.open.add(connection)
        # Not one by one: the giver has that much room left.
        if inlet.taking.unreported * 4 >= self.intake.limit or inlet.taking.declined:
            self._report(inlet)
        return connection, state

    def flush(self) -> None:
        """Tell the givers what they have not been told yet: before a wait."""
        load = self.load
        for inlet in list(self.inlets.values()):
            if inlet.taking.unreported or inlet.taking.declined:
                self._report(inlet)
            elif load != self._load_reported and inlet.lane.roomy:
                self._report(inlet)
        self._load_reported, self._reported_at = load, time.monotonic()

    def stop_taking(self) -> None:
        """From now on decline everything."""
        self.intake.closed = True

    def report_all(self) -> None:
        """Tell every giver how it stands."""
        for inlet in list(self.inlets.values()):
            self._report(inlet)

    def _ended(self, connection: Connection) -> None:
        # Called by whoever closes it, in any thread.
        with self.lock:
            if connection in self.open:
                self.open.discard(connection)
                if time.monotonic() - self._reported_at >= _REPORT_EVERY:
                    self.flush()

    def _read(self, inlet: Inlet) -> None:
        taking = inlet.taking
        try:
            take: list[int] = []
            while (packet := inlet.lane.receive()) is not None:
                if packet.kind == lanes.OFFER:
                    if not packet.arrivals and packet.ids:
                        self._feed(inlet, Unreadable(packet.ids))
                        continue
                    if not inlet.arrivals.keys().isdisjoint(packet.ids) or len(set(packet.ids)) < len(packet.ids):
                        lanes.drop_all(packet.arrivals)
                        raise BadPacket("can't read the lane: one connection is offered twice")
                    inlet.arrivals.update(zip(packet.ids, packet.arrivals, strict=True))
                    for effect in taking.feed(Offered(packet.ids)):
                        if isinstance(effect, SendTake):
                            take += effect.ids
                        else:
                            self._perform(inlet, effect)
                elif packet.kind == lanes.COMMIT:
                    self._feed(inlet, Committed(packet.ids))
                elif packet.kind == lanes.WITHDRAW:
                    self._feed(inlet, Withdrawn(packet.ids))
            # Said together, as far as they came together.
            if take:
                self._perform(inlet, SendTake(take))
        except EOFError:
            self._feed(inlet, Ended())
            self._close(inlet)
        except (BadPacket, OSError):
            # Not the end of a giver: what it has not committed stays its own.
            self._close(inlet)

    def _feed(self, inlet: Inlet, event: ReceiverEvent) -> None:
        for effect in inlet.taking.feed(event):
            self._perform(inlet, effect)

    def _perform(self, inlet: Inlet, effect: ReceiverEffect) -> None:
        if isinstance(effect, Own):
            self.queue.extend((inlet, inlet.arrivals.pop(id)) for id in effect.ids)
            return
        if not isinstance(effect, SendTake):
            lanes.drop_all(arrival for id in effect.ids if (arrival := inlet.arrivals.pop(id, None)) is not None)
        if isinstance(effect, (SendTake, SendDecline)):
            if not inlet.unsent and self._say(inlet, effect):
                return
            inlet.unsent.append(effect)
            self._watch(inlet)

    def _say(self, inlet: Inlet, effect: ReceiverEffect) -> bool:
        """Whether it was said, or nobody is there to hear it."""
        said = inlet.taking.report(self.load) if isinstance(effect, SendTake) else None
        try:
            if said is not None:
                inlet.lane.send(lanes.TAKE, effect.ids, 0, said.received, said.load, said.window)
            elif isinstance(effect, SendDecline):
                inlet.lane.send(lanes.DECLINE, effect.ids, effect.reason.value)
        except EOFError:
            pass  # which is read next
        except OSError:
            if said is not None:
                inlet.taking.unreport(said)
            return False
        return True

    def _report(self, inlet: Inlet) -> None:
        if inlet.lane.fileno() < 0 or inlet.unsent:
            return
        said = inlet.taking.report(self.load)
        try:
            inlet.lane.send(lanes.REPORT, (), 0, said.received, said.load, said.window)
        except EOFError:
            pass
        except OSError:
            inlet.taking.unreport(said)

    def _flush(self, inlet: Inlet) -> None:
        while inlet.unsent:
            if not self._say(inlet, inlet.unsent[0]):
                return
            inlet.unsent.popleft()
        self._watch(inlet)

    def _watch(self, inlet: Inlet) -> None:
        events = select.EPOLLIN | (select.EPOLLOUT if inlet.unsent else 0)
        if inlet.lane.fileno() >= 0:
            self.epoll.modify(inlet.lane.fileno(), events)

    def _close(self, inlet: Inlet) -> None:
        fd = inlet.lane.fileno()
        if fd < 0:
            return
        lanes.drop_all(inlet.arrivals.values())
        inlet.arrivals.clear()
        inlet.taking.feed(Withdrawn(inlet.taking.undecided))
        self.epoll.unregister(fd)
        del self.inlets[fd]
        inlet.lane.close()

    def close(self) -> None:
        """Decline what comes, close what waits, end all lanes. What the program has received stays its own."""
        self.stop_taking()
        for inlet in list(self.inlets.values()):
            self._read(inlet)
            self._close(inlet)
        self._drop_queue()
        self.epoll.close()

    def forget(self) -> None:
        """In a forked child: close the copies of the lanes and of what waits, and say nothing."""
        for inlet in self.inlets.values():
            lanes.drop_all(inlet.arrivals.values())
            inlet.lane.close()
        self.inlets.clear()
        self._drop_queue()
        self.epoll.close()

    def _drop_queue(self) -> None:
        lanes.drop_all(arrival for _, arrival in self.queue)
        self.queue.clear()
