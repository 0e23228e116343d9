"""Registrations and servers of programs that use asyncio."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import sockshare
from sockshare import aio

from .gatehost import GateHost
from .host import TIMEOUT, descriptors


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GateHost]:
    """A host without a broker yet; afterwards this process has the descriptors that it had."""
    host = GateHost(tmp_path / "run")
    before = descriptors()
    try:
        yield host
        host.kill()
        assert descriptors() == before
    finally:
        host.close()


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *body* in a loop of its own, no longer than `TIMEOUT`."""

    async def bounded() -> None:
        await asyncio.wait_for(body(), TIMEOUT)

    asyncio.run(bounded())


async def order(host: GateHost, line: str) -> None:
    await asyncio.to_thread(host.order, line)


async def heard(host: GateHost, word: str) -> str:
    return await asyncio.to_thread(host.wait_for, word)


async def who(host: GateHost) -> bytes:
    """What a server says to a new client."""
    reader, writer = await asyncio.open_connection(*host.sockets["web"].getsockname())
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def say_pid(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(str(os.getpid()).encode())
    await writer.drain()
    writer.close()


def greeter(word: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(word)
        await writer.drain()
        writer.close()

    return greet


@asynccontextmanager
async def serving(host: GateHost, word: bytes, **options: Any) -> AsyncIterator[aio.Server]:
    async with await aio.start_server(greeter(word), "web", endpoint=str(host.directory), **options) as server:
        yield server


def test_loop_hears_of_what_waits_while_it_holds(host: GateHost) -> None:
    """The registration can be watched; `revoked` is an event of the loop, set and cleared."""
    host.start()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with aio.attach(str(host.directory)) as share, share.registration("web") as registration:
            assert isinstance(registration.revoked, asyncio.Event)
            listener = await share.socket("web")
            first = registration.epoch
            told = asyncio.Event()
            loop.add_reader(registration.fileno(), told.set)
            with socket.create_connection(listener.getsockname()):
                await told.wait()
                assert registration.waiting()
                listener.accept()[0].close()
            await order(host, "revoke web")
            await registration.revoked.wait()
            told.clear()
            with socket.create_connection(listener.getsockname()):
                with pytest.raises(TimeoutError, match="not within"):
                    await registration.wait(0.05)
                assert not told.is_set()
                await order(host, "go")
                await registration.wait()
                await told.wait()
                listener.accept()[0].close()
            assert registration.epoch > first
            assert not registration.revoked.is_set()
            loop.remove_reader(registration.fileno())
        assert registration.revoked.is_set()
        with pytest.raises(sockshare.RegistrationLost, match="released"):
            await registration.wait()

    run(main)


def test_share_answers_while_a_task_waits_in_line(host: GateHost) -> None:
    """Waiting for the registration is no question that others must wait for; cancelled, it leaves the line."""
    host.start()

    async def main() -> None:
        async with aio.attach(str(host.directory)) as one, aio.attach(str(host.directory)) as other:
            async with one.registration("web"):

                async def hold() -> None:
                    async with other.registration("web"):
                        pass

                task = asyncio.create_task(hold())
                await heard(host, "waiting")
                await other.ready("warm")
                with pytest.raises(TimeoutError):
                    async with other.registration("web", 0.05):
                        raise AssertionError("it was not held")
                assert not task.done()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await heard(host, "released") == "0"
            async with other.registration("web"):
                pass

    run(main)


def test_tasks_share_one_registration(host: GateHost) -> None:
    """Held until the last has left; cancelled by another's, each is told."""
    host.start()

    async def main() -> None:
        async with aio.attach(str(host.directory)) as share, share.registration("web") as outer:
            async with share.registration("web") as inner:
                assert inner.epoch == outer.epoch
            assert outer.epoch > 0
            with pytest.raises(sockshare.RegistrationLost):
                await inner.wait()
            async with share.registration("web") as inner:
                waiting = asyncio.create_task(inner.wait())
                await waiting
                await order(host, "cancel web")
                await inner.revoked.wait()
                for one in (inner, outer):
                    with pytest.raises(sockshare.RegistrationLost, match="another process"):
                        await one.wait()

    run(main)


def test_refusal_is_raised_by_the_block(host: GateHost) -> None:
    """As without asyncio; nothing stays."""
    host.start(errors={"claim": {"error": "NotPermitted", "message": "can't", "exit": 7}})

    async def main() -> None:
        async with aio.attach(str(host.directory)) as share:
            with pytest.raises(sockshare.NotPermitted):
                async with share.registration("web"):
                    raise AssertionError("it was not held")
            with pytest.raises(sockshare.NotPermitted):
                await aio.start_server(say_pid, "web", share=share)
        with pytest.raises(sockshare.NotPermitted):
            await aio.start_server(say_pid, "web", endpoint=str(host.directory))

    run(main)


def test_server_passes_on_when_it_is_closed(host: GateHost) -> None:
    """One of two serves, the other one stands by; no connection is refused or left when the first closes."""
    host.start()

    async def main() -> None:
        async with serving(host, b"one") as one, serving(host, b"two") as two:
            assert one.is_serving()
            assert [await who(host) for _ in range(20)] == [b"one"] * 20
            assert two.registration.revoked.is_set()
            watched = one.registration.fileno()
            waiting = [asyncio.create_task(who(host)) for _ in range(20)]
            await asyncio.sleep(0)
            one.close()
            one.close()
            assert not one.is_serving()
            assert set(await asyncio.gather(*waiting)) <= {b"one", b"two"}
            await one.wait_closed()
            assert not asyncio.get_running_loop().remove_reader(watched)
            assert [await who(host) for _ in range(20)] == [b"two"] * 20

    run(main)


def test_server_is_silent_while_it_is_revoked(host: GateHost) -> None:
    """It is served by the next in line; a former holder serves again when it is its turn."""
    host.start()

    async def main() -> None:
        async with serving(host, b"one") as one, serving(host, b"two") as two:
            for holder, word, next_word in [(one, b"one", b"two"), (two, b"two", b"one"), (one, b"one", b"two")]:
                await holder.registration.wait()
                assert await who(host) == word
                await order(host, "revoke web")
                await holder.registration.revoked.wait()
                client = asyncio.create_task(who(host))
                await order(host, "go")
                assert await client == next_word

    run(main)


def test_server_serves_on_when_the_broker_is_killed(host: GateHost) -> None:
    """With none, and with the next one."""
    host.start()

    async def main() -> None:
        async with serving(host, b"one"):
            for _ in range(3):
                assert await who(host) == b"one"
                host.kill()
                assert await who(host) == b"one"
                host.start()
                await heard(host, "held")

    run(main)


def test_handlers_end_before_the_server_is_closed(host: GateHost) -> None:
    """What was accepted is served to its end; a handler that fails is logged, and fails its own connection only."""
    host.start()

    async def main() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if await reader.read(4) == b"fail":
                raise ValueError("a defect of the program")
            begun.set()
            await go_on.wait()
            writer.write(b"done")
            writer.close()

        async with aio.attach(str(host.directory)) as share:
            server = await aio.start_server(handler, "web", share=share)
            assert server.share is share
            failing = await asyncio.open_connection(*host.sockets["web"].getsockname())
            failing[1].write(b"fail")
            try:
                assert await failing[0].read() == b""
            except ConnectionResetError:
                pass
            failing[1].close()
            reader, writer = await asyncio.open_connection(*host.sockets["web"].getsockname())
            writer.write(b"slow")
            await begun.wait()
            server.close()
            closed = asyncio.create_task(server.wait_closed())
            assert int(await heard(host, "released")) > 0
            assert not closed.done()
            go_on.set()
            assert await reader.read() == b"done"
            await closed
            writer.close()
            await writer.wait_closed()
            await share.ready()  # it is ours, and goes on

    run(main)


def test_serving_for_ever_ends_with_its_task(host: GateHost) -> None:
    """Cancelled, the server is closed; closed, it returns."""
    host.start()

    async def main() -> None:
        async with serving(host, b"one") as server:
            task = asyncio.create_task(server.serve_forever())
            assert await who(host) == b"one"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not server.is_serving()
            await server.serve_forever()

    run(main)


def test_only_a_stream_that_does_not_block_is_served(host: GateHost) -> None:
    """A sentence says what is wrong, and nothing stays."""
    host.start()

    async def main() -> None:
        with pytest.raises(sockshare.SockshareError, match="no stream socket"):
            await aio.start_server(say_pid, "udp", endpoint=str(host.directory))
        host.sockets["web"].setblocking(True)
        try:
            with pytest.raises(sockshare.SockshareError, match="blocking socket"):
                await aio.start_server(say_pid, "web", endpoint=str(host.directory))
        finally:
            host.sockets["web"].setblocking(False)

    run(main)
