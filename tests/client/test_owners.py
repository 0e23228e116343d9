"""One owner of a connection, or one clean close, whatever a system call on the lane says and whoever is interrupted."""

from __future__ import annotations

import array
import asyncio
import errno
import functools
import inspect
import itertools
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from sockshare.client.exchange import Exchange, Introduction
from sockshare.client.giving import Giver, Transfer, check_all
from sockshare.client.in_loop import LoopExchange
from sockshare.client.taking import Receiver
from sockshare.core.errors import SockshareError
from sockshare.core.handover import RETRY, Kept
from sockshare.kernel import lanes
from sockshare.kernel.lanes import pair
from tests.support.refusals import refused, supported

from .host import descriptors

PID = 77  # of the receiver, for its giver
#: What is no end of a lane.
ERRORS = [errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EMSGSIZE, errno.EPERM]
NAMES = [errno.errorcode[number] for number in ERRORS]

needs_filter = pytest.mark.skipif(not supported, reason="the numbers of system calls are not known here")


class Scene:
    """A giver, a receiver, a lane between them, and the peers of the connections."""

    def __init__(self, giver: Giver | None = None) -> None:
        ours, theirs = pair()
        self.giver = giver or Giver(lambda pid: None)
        self.receiver = Receiver(threading.RLock())
        # A second descriptor of the receiver's end, to say things there that no receiver of ours says.
        self.line = theirs.dup()
        self.lane = ours.detach()
        self.giver.add(self.lane, "chat:1", PID)
        self.receiver.add(theirs.detach(), "web:1")
        self.giver.pump()
        self.ends: list[socket.socket] = []
        self.peers: list[socket.socket] = []

    def connections(self, count: int = 1) -> list[socket.socket]:
        for _ in range(count):
            end, peer = socket.socketpair()
            peer.settimeout(10)
            self.ends.append(end)
            self.peers.append(peer)
        return self.ends[-count:]

    def offer(self, count: int = 1, patience: float = 60.0) -> list[Transfer]:
        """Connections that are offered, and not read yet."""
        transfers = check_all((end, b"state") for end in self.connections(count))
        assert self.giver.offer(transfers, [PID], time.monotonic() + patience, "least_loaded", None) == []
        return transfers

    def taken(self, count: int = 1, patience: float = 60.0) -> list[Transfer]:
        """The same, with the answer of the receiver in the lane."""
        transfers = self.offer(count, patience)
        self.receiver.pump()
        return transfers

    def owners(self) -> list[str]:
        """Who has each connection, in order, once all that was said was heard; and nobody else has a descriptor."""
        self.line.close()
        self.receiver.pump()
        if not self.giver.epoll.closed:
            self.giver.pump()
            self.receiver.pump()
        for end in self.ends:
            if end.fileno() >= 0:
                end.send(b"giver")
                end.close()
        while (found := self.receiver.pop(blocking=True)) is not None:
            found[0].send(b"receiver")
            found[0].close()
        return [_heard(peer) or "closed" for peer in self.peers]

    def close(self) -> None:
        self.giver.close()
        self.receiver.close()
        for sock in (self.line, *self.ends, *self.peers):
            sock.close()


def _heard(peer: socket.socket) -> str:
    return b"".join(iter(lambda: peer.recv(100), b"")).decode()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A scene; what it leaves open fails the test."""
    before = descriptors()
    one = Scene()
    yield one
    one.close()
    assert descriptors() == before


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# What a system call says.


@needs_filter
@pytest.mark.parametrize("error", ERRORS, ids=NAMES)
def test_commit_is_said_again_when_the_lane_did_not_take_it(scene: Scene, error: int) -> None:
    """Until then the connection is nobody's: the giver does not use it, the receiver does not have it."""
    transfers = scene.taken(3)
    refused(scene.giver.pump, scene.lane, error)
    assert not any(one.over for one in transfers)
    scene.receiver.pump()
    assert not scene.receiver.queue
    due = scene.giver.deadline
    assert due is not None
    assert due <= time.monotonic() + RETRY
    scene.giver.tick(time.monotonic() + RETRY)
    assert [one.kept for one in transfers] == [None] * 3
    assert scene.owners() == ["receiver"] * 3


@needs_filter
@pytest.mark.parametrize("error", ERRORS, ids=NAMES)
def test_receiver_has_it_when_the_lane_takes_no_word_for_long(scene: Scene, error: int) -> None:
    """COMMIT nor WITHDRAW can be said: the giver closes its copies, as the dead do, and says so."""
    transfers = [*scene.taken(2), *scene.offer(1)]
    began = time.monotonic()

    def decide() -> None:
        scene.giver.pump()
        scene.giver.decide(transfers)

    refused(decide, scene.lane, error)
    assert time.monotonic() - began < 5
    assert [one.kept for one in transfers] == [None] * 3
    assert scene.owners() == ["receiver"] * 3


@needs_filter
def test_close_ends_and_receiver_has_it_when_the_lane_takes_no_word(scene: Scene) -> None:
    """Closing a share waits no longer than that either."""
    transfers = scene.offer(2)
    refused(scene.giver.close, scene.lane, errno.ENOBUFS)
    assert [one.kept for one in transfers] == [None] * 2
    assert scene.owners() == ["receiver"] * 2


@needs_filter
@pytest.mark.parametrize("error", ERRORS, ids=NAMES)
def test_offer_that_was_not_sent_leaves_it_with_its_giver(scene: Scene, error: int) -> None:
    """It is told at once; nobody else has seen it, and the lane is as before."""
    transfers = check_all((end, b"") for end in scene.connections(2))
    deadline = time.monotonic() + 60
    assert refused(lambda: scene.giver.offer(transfers, [PID], deadline, "least_loaded", None) == [], scene.lane, error)
    assert [one.kept is Kept.FULL if error == errno.EAGAIN else isinstance(one.kept, OSError) for one in transfers]
    assert all(one.over for one in transfers)
    scene.taken(1)
    assert scene.owners() == ["giver", "giver", "receiver"]


@needs_filter
@pytest.mark.parametrize("error", ERRORS, ids=NAMES)
def test_take_is_said_again_when_the_lane_did_not_take_it(scene: Scene, error: int) -> None:
    """Else its giver would wait for nothing until the time-out."""
    transfers = scene.offer(2)
    refused(scene.receiver.pump, next(iter(scene.receiver.inlets)), error)
    scene.giver.pump()
    assert not any(one.over for one in transfers)
    scene.receiver.pump()
    scene.giver.pump()
    assert [one.kept for one in transfers] == [None] * 2
    assert scene.owners() == ["receiver"] * 2


def test_commit_waits_for_room_in_a_lane_that_is_full_for_real(scene: Scene) -> None:
    """EAGAIN of the kernel's own: said as soon as its other end has read."""
    transfers = scene.taken(1)
    outlet = scene.giver.outlets[PID]

    def fill() -> None:
        while True:
            outlet.lane.send(lanes.REPORT)

    with pytest.raises(BlockingIOError):
        fill()
    scene.giver.pump()
    assert not transfers[0].over
    scene.receiver.pump()
    scene.giver.tick(time.monotonic() + RETRY)
    assert scene.owners() == ["receiver"]


def test_giver_has_it_when_the_lane_has_ended_before_commit(scene: Scene) -> None:
    """EPIPE: the receiver has closed what it had."""
    transfers = scene.taken(2)
    scene.line.close()
    scene.receiver.close()
    scene.giver.pump()
    assert [one.kept for one in transfers] == [Kept.LOST] * 2
    assert [end.fileno() >= 0 for end in scene.ends] == [True] * 2


def test_receiver_out_of_descriptors_declines_all_of_a_packet(scene: Scene) -> None:
    """EMFILE, MSG_CTRUNC: what it could open is closed again, and its giver has them."""
    transfers = scene.offer(3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null") as highest:
        limit = highest.fileno() + 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        scene.receiver.pump()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    scene.giver.pump()
    assert [one.kept for one in transfers] == [Kept.UNREADABLE] * 3
    assert scene.owners() == ["giver"] * 3


# What the other end says.


@pytest.mark.parametrize("packet", [b"x", b"", bytes(20), b"T" + bytes(16), b"D\x63" + bytes(18)])
def test_giver_has_it_when_receiver_talks_nonsense(scene: Scene, packet: bytes) -> None:
    """The receiver lives, and would take a lane that ends without WITHDRAW for the end of a dead giver."""
    transfers = scene.taken(2)
    scene.line.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))] if not packet else [])
    scene.giver.pump()
    assert [one.kept for one in transfers] == [Kept.GARBLED] * 2
    assert PID not in scene.giver.outlets
    assert scene.owners() == ["giver"] * 2


@pytest.mark.parametrize("packet", [b"x", bytes(20), b"C\0\1" + bytes(17)])
def test_giver_has_it_when_it_talks_nonsense(scene: Scene, packet: bytes) -> None:
    """The receiver drops what it had, and its giver sees the end of the lane."""
    transfers = scene.taken(2)
    scene.giver.outlets[PID].lane._sock.send(packet)
    scene.receiver.pump()
    assert not scene.receiver.inlets
    scene.line.close()
    scene.giver.pump()
    assert [one.kept for one in transfers] == [Kept.LOST] * 2
    assert scene.owners() == ["giver"] * 2


def test_receiver_keeps_nothing_when_one_connection_is_offered_twice(scene: Scene) -> None:
    """A giver of ours never does; the descriptors that came are closed, and room is counted right."""
    scene.offer(1)
    outlet = scene.giver.outlets[PID]
    before = descriptors()
    end = scene.ends[0]
    cargo = lanes.Cargo(1, end.fileno(), int(end.family), int(end.type), 0, b"")
    scene.receiver.pump()
    assert descriptors() == before + 1
    outlet.lane.send_offer([cargo])
    scene.receiver.pump()
    assert descriptors() == before - 1, "the lane's end and one connection are closed"
    assert scene.receiver.intake.waiting == 0
    scene.line.close()
    scene.giver.pump()
    assert scene.owners() == ["giver"]


# Who leaves.


def test_giver_that_closes_has_everything_back(scene: Scene) -> None:
    """WITHDRAW is in the lane before it ends: offered or taken, it is the giver's, and the receiver drops it."""
    transfers = [*scene.taken(2), *scene.offer(1)]
    scene.giver.close()
    assert [one.kept for one in transfers] == [Kept.SHUT] * 3
    assert scene.owners() == ["giver"] * 3


class Interrupted(Exception):
    """What a signal handler raises, as KeyboardInterrupt is."""


class InterruptedLane(lanes.Lane):
    """A lane whose *moment*th word is in it when the one who said it is interrupted, or about to be (*before*)."""

    def __init__(self, fd: int, *, before: bool) -> None:
        super().__init__(fd)
        self.before = before
        self.armed = True

    def send(self, kind: int, *arguments: Any) -> None:
        armed, self.armed = self.armed, False
        if armed and self.before:
            raise Interrupted
        super().send(kind, *arguments)
        if armed:
            raise Interrupted


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("word", ["commit", "withdraw"])
def test_one_owner_when_its_giver_is_interrupted_as_it_speaks(scene: Scene, before: bool, word: str) -> None:
    """Whether the word is in the lane, nobody knows: COMMIT is said again, and what may be given is never had back."""
    transfers = scene.taken(2) if word == "commit" else scene.offer(2)
    outlet = scene.giver.outlets[PID]
    outlet.lane = InterruptedLane(outlet.lane._sock.detach(), before=before)
    speak = scene.giver.pump if word == "commit" else functools.partial(scene.giver.decide, transfers)
    with pytest.raises(Interrupted):
        speak()
    scene.giver.decide(transfers)
    assert all(one.over for one in transfers)
    assert scene.owners() == (["receiver"] * 2 if word == "commit" else ["giver"] * 2)


class InterruptedSocket(socket.socket):
    """A connection whose owner is interrupted the first time that it gives it up."""

    armed = True

    def detach(self) -> int:
        armed, self.armed = self.armed, False
        if armed:
            raise Interrupted
        return super().detach()


def test_receiver_has_it_when_its_giver_is_interrupted_as_it_closes_its_own(scene: Scene) -> None:
    """COMMIT is in the lane, and the rules have done with them: all of the packet are closed later."""
    scene.ends[:] = [InterruptedSocket(fileno=end.detach()) for end in scene.connections(2)]
    transfers = check_all((end, b"") for end in scene.ends)
    assert scene.giver.offer(transfers, [PID], time.monotonic() + 60, "least_loaded", None) == []
    scene.receiver.pump()
    with pytest.raises(Interrupted):
        scene.giver.pump()
    for end in scene.ends:
        end.armed = False  # type: ignore[attr-defined]
    scene.giver.decide(transfers)
    assert [(one.over, one.kept) for one in transfers] == [(True, None)] * 2
    assert scene.owners() == ["receiver"] * 2


def introduce(one: Exchange) -> None:
    """It knows the receiver as ``chat``; no broker is there, nor needed."""
    known = Introduction("chat")
    known.pids[PID] = "chat:1"
    known.settle()
    one._introductions["chat"] = known


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[tuple[Exchange, Scene]]:
    """An exchange that knows one receiver; its threads and descriptors end with it."""
    before, threads = descriptors(), threading.active_count()
    one = Exchange(str(tmp_path), "web", "web:1")
    scene = Scene(one.giver)
    introduce(one)
    yield one, scene
    one.close()
    scene.close()
    assert (descriptors(), threading.active_count()) == (before, threads)


@pytest.mark.parametrize("taken", [False, True], ids=["offered", "taken"])
def test_hand_over_that_is_interrupted_by_a_signal_leaves_it_with_one_owner(
    exchange: tuple[Exchange, Scene], taken: bool
) -> None:
    """Or with the receiver, and then the object is closed: never with both."""
    one, scene = exchange
    main = threading.get_ident()

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def play() -> None:
        outlet = one.giver.outlets[PID]
        until(lambda: outlet.giving.undecided)
        if taken:
            with one.lock:  # the answer is in the lane, and not read yet
                scene.receiver.pump()
                signal.pthread_kill(main, signal.SIGUSR1)
        else:
            signal.pthread_kill(main, signal.SIGUSR1)

    handler = signal.signal(signal.SIGUSR1, interrupt)
    player = threading.Thread(target=play)
    player.start()
    try:
        with pytest.raises(Interrupted):
            one.hand_over([(scene.connections()[0], b"")], "chat", 30.0, "least_loaded", None)
    finally:
        player.join()
        signal.signal(signal.SIGUSR1, handler)
    assert one.giver.outlets[PID].giving.undecided == 0
    told = "receiver" if scene.ends[0].fileno() < 0 else "giver"
    assert scene.owners() == [told]


def interrupted_at(line: int, function: Callable[..., object], call: Callable[[], object]) -> bool:
    """Whether *call* was interrupted: at the *line*th line of *function*, as by a signal."""
    code = inspect.unwrap(function).__code__
    lines = inspect.getsource(code).splitlines()
    passed = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal passed
        if frame.f_code is not code:
            return None
        # As a `with` is left its line comes once more: a lock that is not released there is the interpreter's loss.
        if event == "line" and not lines[frame.f_lineno - code.co_firstlineno].lstrip().startswith("with "):
            passed += 1
            if passed == line:
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interrupted:
        return True
    except TimeoutError:
        pass
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("what", ["hand_over", "receive"])
def test_no_thread_waits_for_one_that_was_interrupted(tmp_path: Path, what: str) -> None:
    """Wherever that was: others hand over, receive and close."""
    for line in itertools.count(1):
        one = Exchange(str(tmp_path), "web", "web:1")
        scene = Scene(one.giver)
        introduce(one)
        one.take_connections(None)
        if what == "hand_over":
            call = functools.partial(one.hand_over, [(scene.connections()[0], b"")], "chat", 0.01, "least_loaded", None)
            interrupted = interrupted_at(line, Exchange._wait, call)
        else:
            interrupted = interrupted_at(line, Exchange.receive, functools.partial(one.receive, 0.01))
        told: list[object] = []

        def other(one: Exchange = one, scene: Scene = scene, told: list[object] = told) -> None:
            told += one.hand_over([(scene.connections()[0], b"")], "chat", 0.01, "least_loaded", None)
            with suppress(TimeoutError):
                one.receive(0.01)
            one.close()
            told.append("closed")

        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        thread.join(10)
        assert told[1:] == ["closed"], line
        scene.close()
        if not interrupted:
            assert line > 10
            break


def test_hand_over_that_times_out_leaves_it_with_its_giver(exchange: tuple[Exchange, Scene]) -> None:
    """A receiver that is stopped has it no more when it goes on."""
    one, scene = exchange
    (transfer,) = one.hand_over([(scene.connections()[0], b"")], "chat", 0.05, "least_loaded", None)
    assert transfer.kept is Kept.LATE
    assert scene.owners() == ["giver"]


class FailingLane(lanes.Lane):
    """A lane whose first words, so many, do not get into it."""

    def __init__(self, fd: int, failures: int) -> None:
        super().__init__(fd)
        self.failures = failures

    def send(self, kind: int, *arguments: Any) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        super().send(kind, *arguments)


@pytest.mark.parametrize(("failures", "timeout"), [(3, 30.0), (10**9, 0.2)], ids=["for a moment", "for ever"])
def test_hand_over_ends_when_the_lane_takes_no_word(
    exchange: tuple[Exchange, Scene], failures: int, timeout: float
) -> None:
    """For a moment: as if nothing had been. For ever: in its time, and some patience. The receiver has it."""
    one, scene = exchange
    outlet = one.giver.outlets[PID]
    outlet.lane = FailingLane(outlet.lane._sock.detach(), failures)

    def play() -> None:
        until(lambda: outlet.giving.undecided)
        scene.receiver.pump()

    player = threading.Thread(target=play)
    player.start()
    began = time.monotonic()
    (transfer,) = one.hand_over([(scene.connections()[0], b"")], "chat", timeout, "least_loaded", None)
    player.join()
    assert time.monotonic() - began < 5
    assert transfer.kept is None
    assert scene.owners() == ["receiver"]


def test_hand_over_is_told_when_the_share_is_closed_meanwhile(exchange: tuple[Exchange, Scene]) -> None:
    """In every thread; the connections are theirs."""
    one, scene = exchange
    results: list[Sequence[Transfer]] = []
    ends = scene.connections(4)
    threads = [
        threading.Thread(
            target=lambda end=end: results.append(one.hand_over([(end, b"")], "chat", 30.0, "least_loaded", None))
        )
        for end in ends
    ]
    for thread in threads:
        thread.start()
    until(lambda: one.giver.outlets[PID].giving.undecided == 4)
    began = time.monotonic()
    one.close()
    assert time.monotonic() - began < 2.5, "who is woken began to wait anew"
    for thread in threads:
        thread.join(10)
    assert [transfer.kept for (transfer,) in results] == [Kept.SHUT] * 4
    with pytest.raises(SockshareError, match="closed"):
        one.hand_over([(scene.line, b"")], "chat", 30.0, "least_loaded", None)
    assert scene.owners() == ["giver"] * 4


@asynccontextmanager
async def in_loop(directory: Path) -> AsyncIterator[tuple[LoopExchange, Scene]]:
    """As `exchange`, in the running loop."""
    one = Exchange(str(directory), "web", "web:1", in_loop=True)
    scene = Scene(one.giver)
    introduce(one)
    hands = LoopExchange(one)
    try:
        yield hands, scene
    finally:
        hands.close()
        one.close()
        scene.close()


@pytest.mark.parametrize("taken", [False, True], ids=["offered", "taken"])
def test_hand_over_that_is_cancelled_in_a_loop_leaves_it_with_one_owner(tmp_path: Path, taken: bool) -> None:
    """As by a signal."""

    async def body() -> None:
        async with in_loop(tmp_path) as (hands, scene):
            giving = hands.exchange.giver.outlets[PID].giving
            (end,) = scene.connections()
            task = asyncio.ensure_future(hands.hand_over([(end, b"")], "chat", 30.0, "least_loaded", None))
            while not giving.undecided:
                await asyncio.sleep(0)
            if taken:
                scene.receiver.pump()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert giving.undecided == 0
            told = "receiver" if end.fileno() < 0 else "giver"
            assert scene.owners() == [told]

    before = descriptors()
    asyncio.run(body())
    assert descriptors() == before


def test_loop_says_commit_again(tmp_path: Path) -> None:
    """By a timer: a lane that has room tells nothing."""

    async def body() -> None:
        async with in_loop(tmp_path) as (hands, scene):
            outlet = hands.exchange.giver.outlets[PID]
            outlet.lane = FailingLane(outlet.lane._sock.detach(), 3)
            task = asyncio.ensure_future(
                hands.hand_over([(scene.connections()[0], b"")], "chat", 30.0, "least_loaded", None)
            )
            while not outlet.giving.undecided:
                await asyncio.sleep(0)
            scene.receiver.pump()
            (transfer,) = await asyncio.wait_for(task, 10)
            assert transfer.kept is None
            assert scene.owners() == ["receiver"]

    asyncio.run(body())
