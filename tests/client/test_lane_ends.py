"""Both ends of a lane in one process: whoever leaves, and however, a connection has one owner."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from sockshare.client.exchange import Exchange
from sockshare.client.giving import Giver, Transfer, check
from sockshare.client.in_loop import LoopExchange
from sockshare.client.taking import Receiver
from sockshare.kernel import lanes

PID, LATE, TIMEOUT = 4242, 1e12, 10.0


class Stage:
    """A giver and a receiver with a lane, and a connection of a client."""

    def __init__(self) -> None:
        self.receiver = Receiver(threading.RLock())
        self.client, self.server = socket.socketpair()
        self.client.settimeout(TIMEOUT)
        self.server.settimeout(TIMEOUT)
        self.ends = [end.detach() for end in lanes.pair()]

    def connect(self, giver: Giver) -> None:
        giver.add(self.ends[0], "chat:1", PID)
        self.receiver.add(self.ends[1], "web:1")

    def offer(self, giver: Giver) -> Transfer:
        """The connection on its way: taken, and not given yet."""
        transfer = check(self.server, b"state")
        assert giver.offer([transfer], [PID], LATE, "least_loaded", None) == []
        self.receiver.pump(TIMEOUT)
        assert self.receiver.intake.waiting == 1
        return transfer

    def received(self) -> int:
        """How many connections the receiver's program may have."""
        self.receiver.pump()
        return len(self.receiver.queue)

    def is_ours(self) -> bool:
        """Whether the giver's program can use the connection as before."""
        self.server.sendall(b"x")
        return self.client.recv(1) == b"x"

    def end(self) -> None:
        self.receiver.close()
        self.client.close()
        self.server.close()


@contextmanager
def staged() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.end()


@pytest.fixture
def giver() -> Iterator[Giver]:
    """No descriptor is left of it, nor of a `stage`."""
    before = len(os.listdir("/proc/self/fd"))
    found = Giver(lambda pid: None)
    yield found
    if not found.epoll.closed:
        found.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def stage(giver: Giver) -> Iterator[Stage]:
    with staged() as found:
        yield found
        if not giver.epoll.closed:
            giver.close()


def test_giver_that_leaves_keeps_what_is_not_decided(stage: Stage, giver: Giver) -> None:
    """The end of a lane says that its giver is dead, unless it has said before that it has its connections back."""
    stage.connect(giver)
    transfer = stage.offer(giver)
    giver.close()
    assert transfer.over
    assert transfer.kept is not None
    assert stage.received() == 0
    assert stage.is_ours()


def test_connection_that_was_given_is_open_in_one_process(stage: Stage, giver: Giver) -> None:
    """Its client reads the end when the receiver closes it."""
    stage.connect(giver)
    transfer = stage.offer(giver)
    giver.pump(TIMEOUT)
    assert (transfer.over, transfer.kept) == (True, None)
    assert stage.received() == 1
    found = stage.receiver.pop(blocking=True)
    assert found is not None
    found[0].close()
    assert stage.client.recv(1) == b""


def test_connection_stays_its_giver_s_when_the_lane_breaks(stage: Stage, giver: Giver) -> None:
    """Garbage is not the end of the giver: it lives, and has not given it."""
    stage.connect(giver)
    transfer = stage.offer(giver)
    giver.outlets[PID].lane._sock.send(b"nonsense")
    assert stage.received() == 0
    giver.pump(TIMEOUT)
    assert stage.received() == 0
    assert transfer.over
    assert stage.is_ours() is (transfer.kept is not None)


@pytest.mark.parametrize("how", ["close", "garbage"])
def test_receiver_that_leaves_has_nothing_open(stage: Stage, giver: Giver, how: str) -> None:
    """What it had taken, and was not given yet, neither."""
    stage.connect(giver)
    before = len(os.listdir("/proc/self/fd"))
    stage.offer(giver)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    if how == "garbage":
        giver.outlets[PID].lane._sock.send(b"nonsense")
        stage.received()
    else:
        stage.receiver.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    giver.pump(TIMEOUT)
    assert stage.is_ours()


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """Of a process whose broker does not answer: it has all its lanes already."""
    with tempfile.TemporaryDirectory(prefix="sockshare-") as directory:
        found = Exchange(directory, "web", "web:1")
        yield found
        found.close()


class Interrupted(Exception):
    """What a signal's handler raises."""


def test_connection_is_its_owner_s_when_its_hand_over_is_interrupted(exchange: Exchange) -> None:
    """A handler raised out of it, as Ctrl-C does: whatever the receiver says later, it is not given any more."""
    with staged() as stage:
        stage.connect(exchange.giver)
        introduction = exchange.introduction("chat")
        introduction.pids[PID] = "chat:1"
        introduction.settle()
        before, main = signal.getsignal(signal.SIGUSR1), threading.main_thread().ident
        assert main is not None

        def interrupt(number: int, frame: FrameType | None) -> None:
            raise Interrupted

        def take() -> None:
            select.select([stage.receiver.epoll], [], [], TIMEOUT)
            # Its TAKE is not there before the signal is: this end says it when it is told to.
            signal.pthread_kill(main, signal.SIGUSR1)

        signal.signal(signal.SIGUSR1, interrupt)
        taking = threading.Thread(target=take)
        taking.start()
        try:
            with pytest.raises(Interrupted):
                exchange.hand_over([(stage.server, b"")], "chat", TIMEOUT, "least_loaded", None)
        finally:
            taking.join()
            signal.signal(signal.SIGUSR1, before)
        for _ in range(2):
            stage.received()
            exchange.giver.pump()
        assert stage.received() == 0
        assert stage.server.fileno() >= 0
        assert stage.is_ours()


def test_connection_is_its_owner_s_when_its_task_is_cancelled() -> None:
    """Under asyncio too, where the loop attends to the lanes: it is not given once nobody waits for it."""

    async def body(directory: str) -> None:
        exchange = Exchange(directory, "web", "web:1", in_loop=True)
        hands = LoopExchange(exchange)
        try:
            with staged() as stage:
                stage.connect(exchange.giver)
                introduction = exchange.introduction("chat")
                introduction.pids[PID] = "chat:1"
                introduction.settle()
                work = hands.hand_over([(stage.server, b"")], "chat", TIMEOUT, "least_loaded", None)
                giving = asyncio.ensure_future(work)
                while not exchange.giver.outlets[PID].transfers:
                    await asyncio.sleep(0)
                giving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await giving
                for _ in range(2):
                    stage.received()
                    exchange.giver.pump()
                assert stage.received() == 0
                assert stage.is_ours()
        finally:
            hands.close()
            exchange.close()

    with tempfile.TemporaryDirectory(prefix="sockshare-") as directory:
        asyncio.run(body(directory))


def test_fork_says_nothing_on_its_parent_s_lanes(exchange: Exchange) -> None:
    """What its parent is handing over goes on."""
    with staged() as stage:
        stage.connect(exchange.giver)
        transfer = stage.offer(exchange.giver)
        pid = os.fork()
        if not pid:
            try:
                exchange.after_fork()
            finally:
                os._exit(0)
        assert os.waitpid(pid, 0) == (pid, 0)
        exchange.giver.pump(TIMEOUT)
        assert (transfer.over, transfer.kept) == (True, None)
        assert stage.received() == 1
