"""Streams that are taken apart and put together lose no byte in either direction, and close nothing."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from sockshare.aio import put_together, take_apart
from sockshare.core.errors import SockshareError
from tests.client.host import descriptors

Run = Callable[[Coroutine[Any, Any, None]], None]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine in a loop of that kind; it leaks no descriptor."""

    first = request.param()  # uvloop keeps two for all loops to come
    first.run_until_complete(asyncio.sleep(0))
    first.close()

    def run(work: Coroutine[Any, Any, None]) -> None:
        before = descriptors()
        loop = request.param()
        try:
            loop.run_until_complete(work)
        finally:
            loop.close()
        assert descriptors() == before

    return run


async def served() -> tuple[Streams, socket.socket]:
    """A connection as a server has it, and its client."""
    came: asyncio.Future[Streams] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *streams: came.set_result(streams), "127.0.0.1", 0)
    client = await asyncio.to_thread(socket.create_connection, server.sockets[0].getsockname()[:2])
    streams = await came
    server.close()
    return streams, client


def test_unread_bytes_and_what_comes_later_are_read_in_order(run: Run) -> None:
    """What the first reader had, then what the kernel has, then what comes; and the answers arrive."""

    async def work() -> None:
        (reader, writer), client = await served()
        client.sendall(b"first line\nsecond ")
        assert await reader.readline() == b"first line\n"
        while not reader._buffer:  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        connection, unread = await take_apart(reader, writer)
        assert unread == b"second "
        client.sendall(b"line\n")
        reader, writer = await put_together(connection, unread)
        assert await reader.readline() == b"second line\n"
        writer.write(b"answer")
        await writer.drain()
        assert await asyncio.to_thread(client.recv, 100) == b"answer"
        client.close()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    run(work())


def test_what_was_written_has_left_before_the_connection_moves(run: Run) -> None:
    """More than the kernel takes at once: none of it stays behind in the transport."""

    async def work() -> None:
        (reader, writer), client = await served()
        data = bytes(range(256)) * 20_000
        writer.write(data)
        assert writer.transport.get_write_buffer_size() > 0
        received = asyncio.create_task(asyncio.to_thread(read_all, client))
        connection, unread = await take_apart(reader, writer)
        assert unread == b""
        connection.setblocking(True)
        connection.sendall(b"end")
        connection.close()
        assert await received == data + b"end"
        client.close()

    run(work())


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def test_streams_that_somebody_reads_are_left_alone(run: Run) -> None:
    """Two would share what comes; they go on as before."""

    async def work() -> None:
        (reader, writer), client = await served()
        reading = asyncio.create_task(reader.readline())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="a task waits for the reader"):
            await take_apart(reader, writer)
        client.sendall(b"line\n")
        assert await reading == b"line\n"
        client.close()
        writer.close()
        await writer.wait_closed()

    run(work())


def test_closed_streams_are_refused(run: Run) -> None:
    """There is nothing left to move."""

    async def work() -> None:
        (reader, writer), client = await served()
        writer.close()
        with pytest.raises(SockshareError, match="closed, or being closed"):
            await take_apart(reader, writer)
        await writer.wait_closed()
        client.close()

    run(work())


def test_tls_streams_are_refused(run: Run, tmp_path: Path) -> None:
    """Their keys are in this process's memory; they go on as before."""
    certificate = tmp_path / "both.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {certificate} -out {certificate}.crt"
        f" && cat {certificate}.crt >> {certificate}",
        shell=True,
        check=True,
        capture_output=True,
    )

    async def work() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        came: asyncio.Future[Streams] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda *streams: came.set_result(streams), "127.0.0.1", 0, ssl=context)
        trusting = ssl.create_default_context(cafile=certificate)
        port = server.sockets[0].getsockname()[1]
        theirs = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname="localhost")
        reader, writer = await came
        with pytest.raises(TypeError, match="can't hand over a TLS connection"):
            await take_apart(reader, writer)
        theirs[1].write(b"line\n")
        assert await reader.readline() == b"line\n"
        for one in (writer, theirs[1]):
            one.close()
            await one.wait_closed()
        server.close()
        await server.wait_closed()

    run(work())
