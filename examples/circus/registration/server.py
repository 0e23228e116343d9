"""Three processes, of which one at a time serves; the others stand by, warm. Kill it: the next one has the queue.

Change VERSION, then: sockshare reload web
"""

import asyncio
import os
import signal

import sockshare

VERSION = "1"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.readuntil(b"\r\n\r\n")
        body = f"version {VERSION}, pid {os.getpid()}\n"
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        pass  # the client went away, or spoke no HTTP
    finally:
        writer.close()


async def main() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    # In line for the registration from here on, and serving whenever it is held; closed, it passes it on.
    async with await sockshare.aio.start_server(answer, "web") as server:
        await server.share.ready("standing by, or serving")
        await stopping.wait()


asyncio.run(main())
