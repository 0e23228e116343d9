"""Hand-overs of one process: the lanes that the broker introduces it to, and who waits for what.

Theory of operation. The broker names receivers and makes lanes; connections go by the lanes alone. Whoever waits for a
lane attends to it: the thread in `hand_over` or `receive`, one at a time for all; asyncio's loop, where that is in
charge; and, for the receiver's lanes while nobody is in `receive`, the channel's thread. It finds that out by looking
a hundred times a second as long as the program comes and goes, so that a busy program never wakes it.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sockshare.core.errors import HandOverTimedOut, NoBroker, NoReceiver, SockshareError, TicketRefused
from sockshare.core.handover import ROUTES, Kept
from sockshare.kernel.descriptors import close_all

from . import door
from .channel import AGAIN, Channel, Standing
from .giving import Giver, Transfer, check_all
from .taking import Connection, Receiver

log = logging.getLogger(__name__)

#: Seconds that a visit to the door may take; then the broker is asked again.
_AT_DOOR = 2.0
#: Why a receiver did not take a connection that another may take.
_GONE = frozenset({Kept.LOST, Kept.CLOSED, Kept.GARBLED})
_ELSEWHERE = _GONE | {Kept.FULL, Kept.UNREADABLE}
#: Seconds until a lane is tried again when this process may open no more descriptors.
_AFTER_FAILURE = 0.1
#: Seconds between two looks whether the program attends to its lanes.
_LOOK_EVERY = 0.01


class Successor(NamedTuple):
    """The process to which this one is to hand its connections: what ``to=`` takes. Its pid is 0 when there is none in
    particular, and any of the program will do."""

    program: str
    process: str
    pid: int


class NotHandedOver(NamedTuple):
    """A connection that is still this process's own, and why."""

    connection: socket.socket
    error: Exception


class Introduction:
    """What is known of the receivers that go by one ``to``."""

    def __init__(self, to: str | Successor) -> None:
        self.to = to
        self.pids: dict[int, str] = {}
        self.known = threading.Event()
        self.met = False  # all that were there were known at one time
        self.error: Exception | None = None
        self.standing: Standing | None = None
        self.watchers: list[Callable[[], object]] = []

    def usable(self, giver: Giver) -> bool:
        """Whether there is a lane to one of them, and the others are not just being asked for."""
        return self.met and any(pid in giver.outlets for pid in self.pids)

    def settle(self, error: Exception | None = None) -> None:
        """All that are there are known, or none ever will be. With the exchange's lock held."""
        self.error = error
        self.met = self.met or error is None
        self.known.set()
        watchers, self.watchers = self.watchers, []
        for watcher in watchers:
            watcher()


class Retiring(threading.Event):
    """Set while this process is to hand its connections over.

    Attributes:
        successor: To whom; None while it is not set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.successor: Successor | None = None


class Exchange:
    """All hand-overs of the process *name* of *program*, by the broker of *directory*.

    Args:
        in_loop: Whether an event loop attends to the lanes.
    """

    def __init__(self, directory: str, program: str, name: str, *, in_loop: bool = False) -> None:
        self.program = program
        self.name = name
        self.lock = threading.RLock()
        self.giver = Giver(self._lost)
        self.receiver = Receiver(self.lock)
        self.retiring = Retiring()
        self.on_change: list[Callable[[], object]] = []
        self.on_abandoned: Callable[[], bool] | None = None  # whether a loop closes it
        self._directory = directory
        self._in_loop = in_loop
        self._introductions: dict[str | Successor, Introduction] = {}
        self._taking: Standing | None = None
        self.taking_error: Exception | None = None
        self._watching: Standing | None = None
        self._retired = False
        self._decided = threading.Condition(self.lock)
        # Threads by their ident: one that was interrupted by an exception of a signal, wherever that was, can tell
        # that what it began is its own.
        self._giving = 0  # which one waits for the giver's lanes
        self._received = threading.Condition(self.lock)
        self._inside: set[int] = set()  # those in `receive`
        self._polling = 0  # which one of them waits for the receiver's lanes
        self._calls = 0
        self._seen = -1
        self._asleep = False  # the channel's thread counts on being told when `receive` is left
        self._closed = False
        # End every wait for lanes once written to, the second one those in `receive`: the lanes don't tell of close(),
        # nor of a refusal.
        self._wake, self._refusal = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
        self.giver.epoll.register(self._wake, select.EPOLLIN)
        for fd in (self._wake, self._refusal):
            self.receiver.epoll.register(fd, select.EPOLLIN)
        try:
            self._channel = Channel(directory, self)
        except BaseException:
            self._release()
            raise

    # Giving.

    def hand_over(
        self,
        items: Iterable[tuple[socket.socket, bytes]],
        to: str | Successor,
        timeout: float,
        route: str,
        key: bytes | None,
    ) -> list[Transfer]:
        """Hand *items* over; all are decided on return."""
        transfers = check_all(items)
        check_route(route)
        deadline = time.monotonic() + timeout
        introduction = self.introduction(to)
        waiting: Sequence[Transfer] = transfers
        try:
            while waiting:
                if not introduction.usable(self.giver) and not introduction.known.wait(deadline - time.monotonic()):
                    for one in waiting:
                        one.end(Kept.UNHEARD)
                    break
                with self.lock:
                    self.check_open()
                    self.giver.pump()  # whoever has ended meanwhile is asked for anew
                    if not introduction.usable(self.giver) and not introduction.known.is_set():
                        continue
                    offered = self.offer(introduction, waiting, deadline, route, key)
                self._wait(offered, deadline)
                waiting = to_be_tried_again(offered, key)
        except BaseException:
            with self.lock:
                if self._giving == threading.get_ident():
                    self._giving = 0
                self.giver.decide(transfers)
                self._decided.notify_all()
            raise
        return transfers

    def offer(
        self,
        introduction: Introduction,
        transfers: Sequence[Transfer],
        deadline: float,
        route: str,
        key: bytes | None,
    ) -> list[Transfer]:
        """Offer *transfers* as far as there is room, and return those; the rest is over. With the lock held."""
        if introduction.error is not None:
            raise introduction.error
        left = self.giver.offer(transfers, introduction.pids, deadline, route, key)
        reason = Kept.FULL if introduction.usable(self.giver) else Kept.NOBODY
        for one in left:
            one.end(one.kept or reason)
        gone = set(map(id, left))
        return [one for one in transfers if id(one) not in gone]

    def _wait(self, offered: Sequence[Transfer], deadline: float) -> None:
        while True:
            with self.lock:
                if all(one.over for one in offered):
                    return
                now = time.monotonic()
                if now >= deadline:
                    self.giver.decide(offered)
                    self._decided.notify_all()  # what others offered on a lane that was given up is decided too
                    return
                if self._giving or self._closed:  # `close` decides as soon as nobody waits for the lanes
                    self._decided.wait(deadline - now)
                    continue
                due = self.giver.deadline  # ours, or of a word that is to be said again
                if due is not None and due <= now:
                    self.giver.tick(now)
                    self._decided.notify_all()
                    continue
                self._giving = threading.get_ident()
            ready: list[tuple[int, int]] = []
            try:
                ready = self.giver.epoll.poll((deadline if due is None else min(deadline, due)) - now)
            finally:
                with self.lock:
                    self._giving = 0
                    self.giver.take(ready)
                    self._decided.notify_all()

    def introduction(self, to: str | Successor) -> Introduction:
        """What is known of *to*: asked for, when it is new."""
        with self.lock:
            self.check_open()
            found = self._introductions.get(to)
            if found is None or found.error is not None:
                found = self._introductions[to] = Introduction(to)
                self._introduce(found)
            return found

    def _introduce(self, introduction: Introduction) -> None:
        to = introduction.to
        aim = {"to": to.program, "pid": to.pid} if isinstance(to, Successor) else {"to": to}
        key = os.urandom(8).hex()

        def fields() -> dict[str, object]:
            with self.lock:
                self._prune()
                return {**aim, "key": key, "have": list(self.giver.outlets)}

        def hear(event: dict[str, Any]) -> None:
            if "receiver" in event:
                self._meet(introduction, event["receiver"])
            elif "gone" in event:
                with self.lock:
                    introduction.pids.pop(int(event["gone"]), None)
                    self._prune()  # a program that hands nothing over would keep its lane
            elif "known" in event:
                settle()

        def settle(error: Exception | None = None) -> None:
            with self.lock:
                introduction.settle(error)

        introduction.standing = self._channel.ask(Standing("introduce", fields, hear, settle))

    def _meet(self, introduction: Introduction, receiver: dict[str, Any]) -> None:
        pid, process = int(receiver["pid"]), str(receiver["process"])
        if "lane" in receiver:
            fd = self._redeem(str(receiver["lane"]))
            if fd is None:
                if introduction.standing is not None:
                    self._channel.again(introduction.standing)
                return
            with self.lock:
                if self._closed:
                    os.close(fd)
                    return
                self.giver.add(fd, process, pid)
        with self.lock:
            introduction.pids[pid] = process

    def _prune(self) -> None:
        if not self._closed:
            self.giver.pump()

    def _lost(self, pid: int) -> None:
        """The lane to *pid* has ended: whether it has, or only the lane, the broker knows."""
        for introduction in self._introductions.values():
            if introduction.pids.pop(pid, None) is not None and introduction.standing is not None:
                introduction.known.clear()
                self._channel.again(introduction.standing)

    # Taking.

    def take_connections(self, limit: int | None) -> None:
        """From now on this process takes connections, of which *limit* may wait unreceived."""
        with self.lock:
            self.check_open()
            if limit is not None:
                if limit < 1:
                    raise ValueError(f"can't take connections with room for {limit}: at least 1 must be able to wait")
                if limit != self.receiver.intake.limit:
                    self.receiver.intake.limit = limit
                    self.receiver.report_all()
            if self._taking is not None:
                return
            if self.taking_error is not None:
                self.taking_error = None
                try:
                    os.eventfd_read(self._refusal)
                except BlockingIOError:
                    pass

            def fields() -> dict[str, object]:
                return {"key": "take"}

            self._taking = self._channel.ask(Standing("receive", fields, self._hear_of_givers, self._refused))

    def _refused(self, error: Exception) -> None:
        with self.lock:
            if self._closed:
                return
            self.taking_error, self._taking = error, None
            if not self._in_loop:  # which is told by a call
                os.eventfd_write(self._refusal, 1)
        self._tell_of_change()

    def _hear_of_givers(self, event: dict[str, Any]) -> None:
        if "lane" not in event:
            return
        fd = self._redeem(str(event["lane"]))
        if fd is None:
            return  # its giver will see that the lane has ended, and ask for another
        with self.lock:
            if self._closed:
                os.close(fd)
                return
            self.receiver.add(fd, str(event.get("from")))

    def receive(self, timeout: float | None) -> tuple[Connection, bytes]:
        """The next connection that this process was handed, with its state."""
        deadline = None if timeout is None else time.monotonic() + timeout
        me = threading.get_ident()
        try:
            with self.lock:
                self._inside.add(me)
                self._calls += 1
            while True:
                with self.lock:
                    self.check_taking()
                    if not self.receiver.queue and not self._polling:
                        self.receiver.pump()
                    found = self.receiver.pop(blocking=True)
                    if found is not None:
                        return found
                    self.receiver.flush()
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise none_came(timeout)
                    if self._polling:
                        self._received.wait(left)
                        continue
                    self._polling = me
                self._poll(left)
        finally:
            with self.lock:
                self._inside.discard(me)
                if self._polling == me:
                    self._polling = 0
                    self._received.notify_all()
                if self._asleep:
                    self._asleep = False
                    self._channel.turn()

    def _poll(self, left: float | None) -> None:
        ready: list[tuple[int, int]] = []
        try:
            ready = self.receiver.epoll.poll(left)
        finally:
            with self.lock:
                self._polling = 0
                self.receiver.take(ready)
                self._received.notify_all()

    # The channel's thread.

    def watch(self) -> tuple[int, float | None]:
        """See `channel.Attended`."""
        with self.lock:
            if self._in_loop or self._closed or self.taking_error is not None or not self.receiver.inlets:
                return -1, None
            busy = bool(self._inside) or self._calls != self._seen
            idle = bool(self._inside) and self._calls == self._seen
            self._seen = self._calls
            if idle:
                self._asleep = True
                return -1, None
            return (-1, _LOOK_EVERY) if busy else (self.receiver.epoll.fileno(), None)

    def attend(self) -> None:
        """See `channel.Attended`."""
        with self.lock:
            if not self._closed and not self._inside:
                self.receiver.pump()
                self._received.notify_all()

    def abandoned(self) -> None:
        """See `channel.Attended`: nobody will ever receive what this process is handed."""
        if self.on_abandoned is None or not self.on_abandoned():
            self.close()

    def abandon(self) -> None:
        """The share is garbage."""
        self._channel.abandon()

    # Retiring.

    def watch_retiring(self) -> None:
        """From now on this process wants to be told when it is to hand its connections over."""
        with self.lock:
            self.check_open()
            if self._watching is None:
                self._watching = self._watch_retiring()

    def _watch_retiring(self, after: float = 0.0) -> Standing:
        standing = Standing("retiring", lambda: {"key": "retiring"}, self._hear_of_retiring, self._not_watching)
        standing.due = time.monotonic() + after
        return self._channel.ask(standing)

    def _not_watching(self, error: Exception) -> None:
        # Whoever waits for it is in no call that could raise.
        with self.lock:
            if not self._closed:
                log.error("hand-overs: a reload could not tell this process now: %s", error)
                self._watching = self._watch_retiring(AGAIN)

    def _hear_of_retiring(self, event: dict[str, Any]) -> None:
        if "retire" in event:
            to = event["retire"]
            if self._retired:
                self._say_retired()  # the broker that was told is gone
                return
            successor = Successor(self.program, str(to.get("process") or self.program), int(to.get("pid") or 0))
            with self.lock:
                self.retiring.successor = successor
                self.receiver.stop_taking()
                self.receiver.report_all()
            self.retiring.set()
        elif "stay" in event:
            with self.lock:
                self._retired = False
                self.receiver.intake.closed = False
                self.receiver.report_all()
                self.retiring.successor = None
            self.retiring.clear()
        else:
            return
        self._tell_of_change()

    def _tell_of_change(self) -> None:
        for watcher in list(self.on_change):
            watcher()

    def retired(self) -> None:
        """This process has handed over what it had."""
        self._retired = True
        self._say_retired()

    def _say_retired(self) -> None:
        self._channel.ask(Standing("retired", dict, lambda event: None, lambda error: None))

    # Parts of the above.

    def _redeem(self, ticket: str) -> int | None:
        """The end of a lane; None when there is none for this ticket any more, or not now."""
        try:
            ((name, fd),) = door.redeem(self._directory, [bytes.fromhex(ticket)], time.monotonic() + _AT_DOOR)
        except (NoBroker, TicketRefused):
            return None
        except door.NoDescriptor:
            time.sleep(_AFTER_FAILURE)  # its giver asks again
            return None
        if not name.startswith("lane:"):
            os.close(fd)
            return None
        return fd

    def check_taking(self) -> None:
        """Raise why nothing will ever come, if that is so."""
        self.check_open()
        if self.taking_error is not None:
            raise self.taking_error

    def check_open(self) -> None:
        """Raise if this share is closed."""
        if self._closed:
            raise SockshareError("can't hand over connections: this share is closed; attach again")

    def close(self) -> None:
        """Have back what is on its way; close what was not received; end all lanes."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._wake, 1)
            # Closing an epoll does not end another thread's wait for it.
            self._decided.wait_for(lambda: not self._giving)
            self._received.wait_for(lambda: not self._polling)
            self._release()
            self._decided.notify_all()
            self._received.notify_all()
        self._channel.close()

    def _release(self) -> None:
        self.giver.close()
        self.receiver.close()
        self._close_eventfds()

    def _close_eventfds(self) -> None:
        fds, self._wake, self._refusal = (self._wake, self._refusal), -1, -1
        close_all(fd for fd in fds if fd >= 0)

    def after_fork(self) -> None:
        """In a forked child: the lanes are the parent's."""
        self._closed = True
        self.lock = self.receiver.lock = threading.RLock()  # another thread may have had it
        self.giver.forget()
        self.receiver.forget()
        self._close_eventfds()


def check_route(route: str) -> None:
    """Refuse a *route* that there is not."""
    if route not in ROUTES:
        raise ValueError(f"can't route by {route!r}: it must be one of {', '.join(ROUTES)}, or give a key=")


def to_be_tried_again(offered: Iterable[Transfer], key: bytes | None) -> list[Transfer]:
    """Those of *offered* that were not taken, for a reason for which another receiver may; they are not over."""
    reasons = _ELSEWHERE if key is None else _GONE  # what a full receiver's key is meant for is nobody else's
    found = [one for one in offered if one.kept in reasons]
    for one in found:
        one.over = False
    return found


def none_came(timeout: float | None) -> HandOverTimedOut:
    """That nothing was received in time."""
    return HandOverTimedOut(f"can't receive a connection: none was handed over within {timeout or 0:g} s")


def named(to: str | Successor) -> str:
    """*to*, for people."""
    return repr(to) if isinstance(to, str) else f"{to.process} (pid {to.pid})"


def not_handed_over(transfers: Iterable[Transfer], to: str | Successor, timeout: float) -> list[NotHandedOver]:
    """Those of *transfers* that are still this process's."""
    return [
        NotHandedOver(one.connection, error) for one in transfers if (error := _error_of(one, to, timeout)) is not None
    ]


def _error_of(transfer: Transfer, to: str | Successor, timeout: float) -> Exception | None:
    """Why *transfer* is still its owner's; None when it is not."""
    kept = transfer.kept
    if kept is None:
        return None
    whom = named(to)
    if isinstance(kept, OSError):
        return SockshareError(f"can't hand over a connection to {whom}: {kept.strerror or kept}")
    if kept is Kept.SHUT:
        return SockshareError(f"can't hand over a connection to {whom}: {kept.value}")
    if kept in (Kept.LATE, Kept.UNHEARD):
        return HandOverTimedOut(f"can't hand over a connection to {whom}: {kept.value} ({timeout:g} s)")
    return NoReceiver(f"can't hand over a connection to {whom}: {kept.value}")
