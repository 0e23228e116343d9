"""Whose answer proves that a new process serves, and which: the server is this process."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess

import pytest

from sockshare.broker.drain import Address
from sockshare.broker.verify import Wrong, verify

TIMEOUT = 10.0


class Server:
    """Answers *status* to every request, and keeps what was asked."""

    def __init__(self, status: str) -> None:
        self.status = status
        self.asked: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.read(65536)
            self.asked.append(request)
            if request:
                writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        finally:
            writer.close()


async def verified(server: Server, pid: int) -> str:
    """What `verify` says of *pid*."""
    own = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    host, port = own.sockets[0].getsockname()
    taken: list[bool] = []

    async def take() -> None:
        taken.append(True)

    try:
        how = await asyncio.wait_for(verify(pid, Address(int(socket.AF_INET), port, host), "/health", take), TIMEOUT)
        assert taken
        return how
    finally:
        own.close()
        await own.wait_closed()


@pytest.mark.parametrize("status", ["200 OK", "204 No Content"])
def test_page_that_answers_is_enough(status: str) -> None:
    """With any 2xx; it is asked for by its path."""
    server = Server(status)
    assert status in asyncio.run(verified(server, os.getpid()))
    assert server.asked[-1].startswith(b"GET /health HTTP/1.1\r\n")


@pytest.mark.parametrize("status", ["500 Internal Server Error", "404 Not Found", "302 Found", "nonsense"])
def test_page_that_answers_something_else_is_wrong(status: str) -> None:
    """A version that serves errors does not take over."""
    with pytest.raises(Wrong):
        asyncio.run(verified(Server(status), os.getpid()))


def test_answer_of_another_process_proves_nothing() -> None:
    """It is not even asked: a connection that a sibling has taken is given up."""

    async def body() -> None:
        server = Server("200 OK")
        with subprocess.Popen(["/bin/sleep", "1000"]) as other:
            asking = asyncio.ensure_future(verified(server, other.pid))
            try:
                while len(server.asked) < 3 and not asking.done():
                    await asyncio.sleep(0.002)
                assert server.asked[:3] == [b"", b"", b""]
            finally:
                asking.cancel()
                other.kill()
                await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(body())
