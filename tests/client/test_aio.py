"""The library for asyncio."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

import sockshare
from sockshare import aio

from .host import TIMEOUT, Host, descriptors


def test_connection_is_served_when_loop_watches_the_socket(host: Host) -> None:
    """Both ways to attach give a socket that the loop can watch and accept on."""
    host.start()
    before = descriptors()

    async def main() -> None:
        share = await aio.attach(str(host.directory))
        async with share:
            assert share.program == "web"
            listener = await share.socket("web")
            loop = asyncio.get_running_loop()
            accepted: asyncio.Future[socket.socket] = loop.create_future()
            loop.add_reader(listener, lambda: accepted.set_result(listener.accept()[0]))
            with (
                socket.create_connection(listener.getsockname()) as client,
                await asyncio.wait_for(accepted, TIMEOUT) as connection,
            ):
                loop.remove_reader(listener)
                assert connection.getpeername() == client.getsockname()
            await share.ready("serving")
            assert await share.redeem(await share.duplicate("web", os.getpid())) is listener
        async with aio.attach(str(host.directory)) as share:
            assert share.sockets() == ("web", "api", "udp")
            with pytest.raises(sockshare.UnknownSocket):
                await share.socket("wbe")

    asyncio.run(main())
    assert descriptors() == before


def test_loop_runs_on_when_the_broker_is_silent(host: Host) -> None:
    """A question that waits for the broker does not stop the loop."""
    host.start(deaf=["ready"])

    async def main() -> None:
        async with aio.attach(str(host.directory), timeout=0.5) as share:
            asking = asyncio.create_task(share.ready())
            turns = 0
            while not asking.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert turns > 10
            with pytest.raises(sockshare.NoBroker):
                await asking

    asyncio.run(main())


def test_error_is_raised_when_there_is_no_broker(host: Host) -> None:
    """As the library without asyncio."""

    async def main() -> None:
        with pytest.raises(sockshare.NoBroker):
            await aio.attach(str(host.directory), timeout=0.1)

    asyncio.run(main())
