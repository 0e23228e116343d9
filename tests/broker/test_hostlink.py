"""The broker's end of the link, with a real host or a host that does not read at the other."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from sockshare.broker.hostlink import HostLink
from sockshare.host import meeting
from sockshare.host.host import Host
from sockshare.host.verbs import Manager
from sockshare.kernel.channel import Channel
from sockshare.kernel.descriptors import close_all
from sockshare.kernel.gate import Gate
from tests.host.embedded import Orders


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *body* in a loop of its own; no descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(body())
    assert len(os.listdir("/proc/self/fd")) == before


class Linked:
    """A link to *other*'s peer, and the hello that it heard."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: asyncio.Queue[tuple[dict[str, Any], list[int]]] = asyncio.Queue()
        self.ended: list[str] = []
        self.link = HostLink(
            sock, on_message=lambda message, fds: self.heard.put_nowait((message, fds)), on_end=self.ended.append
        )

    async def hello(self) -> tuple[list[str], list[int]]:
        """What was kept: the keys, and the descriptors, which are the caller's."""
        message, fds = await asyncio.wait_for(self.heard.get(), 10)
        count = len(message["kept"])
        close_all(fds[: len(fds) - count])
        return message["kept"], fds[len(fds) - count :]

    def close(self) -> None:
        """As a broker that has died."""
        asyncio.get_running_loop().remove_reader(self.link._channel.fileno())
        self.link._channel.close()


def test_gate_is_there_for_the_next_broker_with_what_is_in_it(tmp_path: Path) -> None:
    """`keep` outlives the broker that said it right before it died; `forget` too."""

    async def body() -> None:
        (tmp_path / meeting.NOTIFY).mkdir()
        manager = Manager("circus", os.getpid(), os.geteuid(), "1-1")
        host = Host(asyncio.get_running_loop(), Orders(), manager, str(tmp_path))
        host.open()
        watched, writing = os.pipe()
        os.write(writing, b"x")

        def link() -> Linked:
            ours, theirs = socket.socketpair()
            linked = Linked(theirs)
            host.serve(ours)
            return linked

        try:
            first = link()
            assert await first.hello() == ([], [])
            with Gate() as gate, Gate() as other:
                first.link.keep("gate:1", gate.fileno())
                first.link.keep("gate:2", other.fileno())
                gate.arm(watched)
            first.close()
            second = link()
            keys, fds = await second.hello()
            assert keys == ["gate:1", "gate:2"]
            with Gate(fds[0]) as gate, Gate(fds[1]) as other:
                assert (gate.poll(), other.poll()) == (True, False)
            second.link.forget("gate:1")
            second.close()
            third = link()
            keys, fds = await third.hello()
            assert keys == ["gate:2"]
            close_all(fds)
            third.close()
        finally:
            host.close()
            os.close(watched)
            os.close(writing)

    run(body)


def test_descriptor_is_sent_when_there_is_room_although_its_owner_closed_it() -> None:
    """A host that does not read holds nobody up for long, and gets it once it reads; no duplicate stays with us."""

    async def body() -> None:
        ours, theirs = socket.socketpair()
        linked = Linked(theirs)
        host = Channel(ours)
        while not linked.link._channel.wants_write:
            linked.link.forget("x" * 4096)
        reading, writing = os.pipe()
        before = len(os.listdir("/proc/self/fd"))
        with Gate() as gate:
            gate.arm(reading)
            linked.link.keep("gate:1", gate.fileno())
        assert len(os.listdir("/proc/self/fd")) == before + 1
        kept: list[int] = []
        give_up = time.monotonic() + 10
        while not kept:
            assert time.monotonic() < give_up
            for message, fds in host.receive():
                if message["type"] == "keep":
                    kept += fds
            await asyncio.sleep(0)  # its turn to write
        assert len(os.listdir("/proc/self/fd")) == before + 1
        (fd,) = kept
        with Gate(fd) as gate:
            assert not gate.poll()
            os.write(writing, b"x")
            assert gate.poll()
        os.close(reading)
        os.close(writing)
        linked.close()
        host.close()
        assert linked.ended == []

    run(body)


def test_what_must_be_recorded_first_waits_for_a_host_that_does_not_read() -> None:
    """It goes on once the host has read all that was said before, or after a second; at once where there is room."""

    async def body() -> None:
        ours, theirs = socket.socketpair()
        linked = Linked(theirs)
        host = Channel(ours)
        loop = asyncio.get_running_loop()
        try:
            linked.link.journal("a", {})
            assert linked.link.recorded() is None
            while linked.link._channel.unsent < 1 << 20:  # several times what the link has room for
                linked.link.forget("x" * 4096)
            linked.link.journal("b", {"n": 1})
            began = loop.time()
            recorded = linked.link.recorded()
            assert recorded is not None
            await asyncio.wait_for(recorded, 10)
            assert loop.time() - began >= 0.99
            recorded = linked.link.recorded()
            assert recorded is not None
            began, heard = loop.time(), []
            while not recorded.done():
                heard += [message["key"] for message, _ in host.receive()]
                await asyncio.sleep(0)
            heard += [message["key"] for message, _ in host.receive()]
            assert loop.time() - began < 0.9  # it was not its second that passed
            while host.more:
                heard += [message["key"] for message, _ in host.receive()]
            assert (heard[0], heard[-1]) == ("a", "b")
            assert linked.ended == []
        finally:
            linked.close()
            host.close()

    run(body)


def test_broker_ends_when_its_host_never_reads() -> None:
    """Memory is not without end: the next broker has the journal as far as the host has read it."""

    async def body() -> None:
        ours, theirs = socket.socketpair()
        linked = Linked(theirs)
        try:
            for _ in range(70):
                assert linked.ended == [] or "does not read" in linked.ended[0]
                linked.link.journal("a", {"text": "x" * (1 << 20)})
            assert linked.ended
        finally:
            linked.close()
            ours.close()

    run(body)
