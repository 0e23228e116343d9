"""Connections of a real process, ours, that is drained from outside."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from sockshare.broker.drain import Address, Drainer, Left

TIMEOUT = 10.0


@contextmanager
def listening() -> Iterator[tuple[socket.socket, Address]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        yield listener, Address(int(listener.family), port, host)


def accepted(stack: ExitStack, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """The client's end of a connection, and the server's."""
    client = stack.enter_context(socket.create_connection(listener.getsockname(), TIMEOUT))
    server = stack.enter_context(listener.accept()[0])
    server.settimeout(TIMEOUT)
    return client, server


async def until(condition: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + TIMEOUT
    while not condition():
        assert loop.time() < deadline
        await asyncio.sleep(0.002)


def has_ended(server: socket.socket) -> bool:
    """Whether its server reads the end of file."""
    server.setblocking(False)
    try:
        return server.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    finally:
        server.settimeout(TIMEOUT)


def test_only_what_is_idle_is_ended() -> None:
    """A connection whose request is at work is left alone until its answer is there."""

    async def body() -> None:
        with ExitStack() as stack, listening() as (listener, address):
            _, idle = accepted(stack, listener)
            client, busy = accepted(stack, listener)
            client.sendall(b"request")
            assert busy.recv(100) == b"request"
            drainer = Drainer(os.getpid(), [address])
            drainer.end_idle()
            told: list[Left] = []
            running = asyncio.ensure_future(drainer.run(told.append))
            await until(lambda: has_ended(idle))
            idle.close()
            await until(lambda: told)  # about once a second: looked at a hundred times by now
            assert told[0] == Left(idle=0, busy=1)
            assert not has_ended(busy)
            busy.sendall(b"answer")
            assert client.recv(100) == b"answer"
            await until(lambda: has_ended(busy))
            busy.close()
            assert await asyncio.wait_for(running, TIMEOUT) == "no connection left"

    asyncio.run(body())


def test_connection_that_was_accepted_meanwhile_is_seen() -> None:
    """Descriptors are looked through now and then; and once more before it is said that nothing is left."""
    with ExitStack() as stack, listening() as (listener, address):
        drainer = Drainer(os.getpid(), [address])
        assert drainer._look()[0] == Left(0, 0)
        client, busy = accepted(stack, listener)
        client.sendall(b"request")
        assert busy.recv(100) == b"request"
        drainer.end_idle()
        assert drainer._look()[0] == Left(idle=0, busy=1)
