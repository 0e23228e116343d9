"""What arrives and is not taken, on real sockets; the times are the test's own choice, so only their order counts."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from sockshare.broker.arrivals import Arrivals

STALL = 0.3
DEADLINE = 20.0


class Told:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def of(self, what: str) -> Callable[[str], Awaitable[None]]:
        async def told(name: str) -> None:
            self.counts.update([what])

        return told

    async def until(self, what: str, count: int = 1) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINE
        while self.counts[what] < count:
            assert loop.time() < deadline, f"not within {DEADLINE} s: {what} x {count}"
            await asyncio.sleep(0.005)


Body = Callable[[Told, Arrivals, socket.socket], Awaitable[None]]


def run(body: Body, *, stall: float = STALL, look_every: float = 0.05) -> None:
    async def main() -> None:
        told = Told()
        arrivals = Arrivals(waits=told.of("waits"), stalled=told.of("stalled"))
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
            listener.setblocking(False)
            arrivals.watch("web", listener.fileno(), stall_timeout=stall, look_every=look_every)
            await body(told, arrivals, listener)
        arrivals.close()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before


def client(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname())


def test_what_stands_untaken_is_stalled() -> None:
    """Once a stall time-out, for as long as it stands."""

    async def body(told: Told, arrivals: Arrivals, listener: socket.socket) -> None:
        with client(listener):
            await told.until("stalled", 2)
            assert told.counts["waits"] > 2

    run(body)


def test_what_arrived_before_is_seen_too() -> None:
    """A broker that is started anew has missed the arrival."""

    async def main() -> None:
        told = Told()
        with socket.create_server(("127.0.0.1", 0)) as listener, client(listener):
            arrivals = Arrivals(waits=told.of("waits"), stalled=told.of("stalled"))
            arrivals.watch("web", listener.fileno(), stall_timeout=STALL)
            await told.until("stalled")
            arrivals.close()

    asyncio.run(main())


def test_a_queue_that_moves_is_not_stalled_however_long_it_is() -> None:
    """A busy server has a queue at every look: only that it is always the same one tells."""

    async def body(told: Told, arrivals: Arrivals, listener: socket.socket) -> None:
        clients = [client(listener) for _ in range(8)]
        try:
            loop = asyncio.get_running_loop()
            until = loop.time() + 6 * STALL
            while loop.time() < until:  # one taken, one more: the queue is always eight long
                listener.accept()[0].close()
                clients.append(client(listener))
                await asyncio.sleep(STALL / 5)
            assert told.counts["waits"] > 3
            assert told.counts["stalled"] == 0
        finally:
            for one in clients:
                one.close()

    run(body)


def test_the_time_begins_anew_when_another_one_has_it() -> None:
    """Who has just got the registration has a whole stall time-out to take what waits."""

    async def body(told: Told, arrivals: Arrivals, listener: socket.socket) -> None:
        with client(listener):
            loop = asyncio.get_running_loop()
            until = loop.time() + 4 * STALL
            while loop.time() < until:
                arrivals.begin_anew("web")
                await asyncio.sleep(STALL / 10)
            assert told.counts["stalled"] == 0
            await told.until("stalled")

    run(body)


def test_it_is_looked_as_often_as_was_asked_for() -> None:
    """For as long as something waits, and not at all while nothing does."""

    async def body(told: Told, arrivals: Arrivals, listener: socket.socket) -> None:
        with client(listener):
            await told.until("waits", 5)
            listener.accept()[0].close()
        await asyncio.sleep(3 * STALL)
        assert told.counts["stalled"] == 0
        before = told.counts["waits"]
        await asyncio.sleep(3 * STALL)
        assert told.counts["waits"] == before

    run(body, look_every=STALL / 20)


@pytest.mark.parametrize("stall", [0.0])
def test_nothing_is_stalled_without_a_time_out(stall: float) -> None:
    """``stall_timeout = 0``: a program may leave what waits as long as it likes."""

    async def body(told: Told, arrivals: Arrivals, listener: socket.socket) -> None:
        with client(listener):
            await told.until("waits", 12)
            assert told.counts["stalled"] == 0

    run(body, stall=stall)


def test_what_came_while_nobody_looked_has_its_time_before_it() -> None:
    """As after a suspend of the machine: what is seen then was not seen to stand, however long the last look is ago."""
    stall = 1.0

    async def body(told: Told, arrivals: Arrivals, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        first = client(listener)
        await told.until("waits")
        time.sleep(stall)  # nothing of this process runs, and the holder takes what waited
        listener.accept()[0].close()
        with first, client(listener):
            began = loop.time()
            await told.until("stalled")
            assert loop.time() - began > stall / 2

    run(body, stall=stall)
