"""Answers what it is handed. Change VERSION, then: sockshare reload worker"""

import asyncio
import os
import signal
import socket

import sockshare
from sockshare.aio import put_together

VERSION = "1"


async def answer(connection: socket.socket) -> None:
    reader, writer = await put_together(connection)
    try:
        await reader.readuntil(b"\r\n\r\n")
        body = f"version {VERSION}, pid {os.getpid()}\n"
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        pass  # the client went away, or spoke no HTTP
    finally:
        writer.close()


async def work(share: sockshare.aio.Share, answering: "set[asyncio.Task[None]]") -> None:
    async for connection, _ in share.connections():
        task = asyncio.create_task(answer(connection))
        answering.add(task)
        task.add_done_callback(answering.discard)


async def retire(share: sockshare.aio.Share, answering: "set[asyncio.Task[None]]") -> None:
    """From the moment that it is to retire it is given nothing; what it has, it answers itself."""
    while True:
        await share.retiring.wait()
        while answering or share.waiting:
            await asyncio.sleep(0.02)
        await share.retired()
        await share.retiring.over()


async def main() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    answering: set[asyncio.Task[None]] = set()
    async with sockshare.aio.attach() as share:
        tasks = [asyncio.create_task(work(share, answering)), asyncio.create_task(retire(share, answering))]
        await share.ready("working")
        await stopping.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*answering)


asyncio.run(main())
