"""What becomes of a ticket whose descriptor was not acknowledged, and of one peer that takes all connections."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from sockshare.broker import door as module
from sockshare.broker.door import Door
from sockshare.core.errors import NotPermitted
from sockshare.kernel import listeners
from sockshare.kernel.descriptors import close_all, receive
from sockshare.kernel.peers import Peer

SECRET = b"0123456789abcdef"
TIMEOUT = 10.0


class Tickets:
    """`SECRET` is good for our standard input; what is heard of it is written down."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, list[bytes]]] = []

    def redeem(self, secrets: Sequence[bytes], peer: Peer, pidfd: int | None) -> list[tuple[str, int]]:
        return [("web", 0) for _ in secrets]

    def acknowledge(self, secrets: Sequence[bytes]) -> None:
        self.heard.append(("acknowledged", list(secrets)))

    def abandon(self, secrets: Sequence[bytes]) -> None:
        self.heard.append(("abandoned", list(secrets)))

    def hand_out(self, name: str, peer: Peer, pidfd: int | None) -> int:
        raise NotPermitted(f"can't hand out {name}")

    def may_present(self, key: str, peer: Peer, pidfd: int | None) -> None:
        raise NotPermitted("can't take a gate")

    def presented(self, key: str, fd: int) -> None:
        os.close(fd)


def at_door(directory: Path, work: Callable[[str, Tickets], Coroutine[Any, Any, None]]) -> None:
    """Run *work* beside a door."""

    async def body() -> None:
        path, tickets = str(directory / "door"), Tickets()
        door = Door(listeners.make(path, socket.SOCK_SEQPACKET).detach(), tickets, lambda peer: {"v": 1})
        await work(path, tickets)
        await until(lambda: not door._visitors)
        asyncio.get_running_loop().remove_reader(door._listener)
        door._listener.close()

    asyncio.run(body())


async def until(condition: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + TIMEOUT
    while not condition():
        assert loop.time() < deadline
        await asyncio.sleep(0.002)


def connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(TIMEOUT)
    sock.connect(path)
    return sock


@pytest.mark.parametrize(("last", "heard"), [(b"A", "acknowledged"), (b"", "abandoned")])
def test_ticket_is_spent_on_who_says_that_it_has_the_descriptor(tmp_path: Path, last: bytes, heard: str) -> None:
    """Who is gone without a word may have been at its limit of descriptors: it can try once more."""

    async def work(path: str, tickets: Tickets) -> None:
        def redeem() -> None:
            with connected(path) as sock:
                sock.send(b"R" + SECRET)
                data, fds = receive(sock, 100, 1)
                close_all(fds)
                assert (data, len(fds)) == (b"+web", 1)
                if last:
                    sock.send(last)

        await asyncio.to_thread(redeem)
        await until(lambda: tickets.heard)
        assert tickets.heard == [(heard, [SECRET])]

    at_door(tmp_path, work)


def test_one_peer_has_so_many_connections_and_no_more(tmp_path: Path) -> None:
    """The one too many is closed, the others are served."""

    async def work(path: str, tickets: Tickets) -> None:
        def connect() -> list[bytes]:
            socks = [connected(path) for _ in range(module._OF_PROCESS + 1)]
            try:
                return [answer(sock) for sock in (socks[-1], socks[0])]
            finally:
                for sock in socks:
                    sock.close()

        def answer(sock: socket.socket) -> bytes:
            try:
                sock.send(b"H")
                return sock.recv(100)[:1]
            except ConnectionError:
                return b""

        assert await asyncio.to_thread(connect) == [b"", b"+"]

    at_door(tmp_path, work)
