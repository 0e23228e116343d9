"""The notify sockets that a host keeps: who may send to them, and that their end waits for nobody."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from sockshare.host.notify import NotifySockets
from sockshare.kernel import closing, listeners
from tests.host.test_host import SLEEPER, until
from tests.support.circusd import wait_until
from tests.support.strangers import NOBODY, READY, SOMEBODY, Stranger, strangers

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which only root may"),
    pytest.mark.timeout(20),  # what lingers does so for an hour
]
Starter = Callable[..., Stranger]


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that other users may pass through."""
    with tempfile.TemporaryDirectory(prefix="ss-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


@pytest.fixture
def start() -> Iterator[Starter]:
    with strangers() as starter:
        yield starter


def run(body: Callable[[NotifySockets], Coroutine[Any, Any, None]], directory: Path) -> None:
    """Run *body* with notify sockets in a loop of its own; nothing is left to close."""

    async def play() -> None:
        sockets = NotifySockets(asyncio.get_running_loop(), str(directory))
        try:
            await body(sockets)
        finally:
            sockets.close()

    asyncio.run(play())
    wait_until(lambda: not closing.unfinished(), 10, "everything is closed")


def test_host_goes_on_when_a_process_dies_whose_socket_is_full_of_lingering_connections(
    directory: Path, start: Starter
) -> None:
    """To close what nobody has read takes an hour each, where the kernel can't refuse it: not in this loop."""

    async def body(sockets: NotifySockets) -> None:
        process = subprocess.Popen(SLEEPER)
        try:
            listeners.accept_descriptors(sockets.open(process.pid))
            path = sockets.path(process.pid)
            stranger = start(SOMEBODY, "linger", 3, path)
            assert await asyncio.to_thread(stranger.done) == 3
            process.kill()
            await until(lambda: not os.path.exists(path), "the socket goes with its process")
            assert closing.unfinished() == 1
            stranger.close()
        finally:
            process.kill()
            process.wait()

    run(body, directory)


@pytest.mark.parametrize(
    ("uid", "allowed"),
    [
        pytest.param(0, {0: 1, NOBODY: 1, SOMEBODY: 1}, id="root may become anybody"),
        pytest.param(NOBODY, {0: 1, NOBODY: 1, SOMEBODY: 0}, id="nobody can't"),
    ],
)
def test_kernel_keeps_other_users_out_where_the_process_stays_what_it_is(
    directory: Path, start: Starter, uid: int, allowed: dict[int, int]
) -> None:
    """Also where the socket is made anew; and none can send a descriptor, where the kernel can refuse that."""

    async def body(sockets: NotifySockets) -> None:
        with socket.socket(socket.AF_UNIX) as other:
            refuses = listeners.refuse_descriptors(other)  # what this kernel can, not what it does with ours
        leader = start(uid, "lead")
        assert await asyncio.to_thread(leader.done) == "leads"
        for _ in range(2):
            sock = sockets.open(leader.pid)
            for who, taken in allowed.items():
                assert await asyncio.to_thread(start(who, "say", READY, sockets.path(leader.pid)).done) == taken
            own = start(uid, "linger", 1, sockets.path(leader.pid))
            assert await asyncio.to_thread(own.done) == int(not refuses)
            assert len(received(sock)) == sum(allowed.values()) + int(not refuses)
            own.close()
            sockets.renew()

    run(body, directory)


def received(sock: socket.socket) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(sock.recv(100))
    except BlockingIOError:
        return found
