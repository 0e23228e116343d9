"""A plain asyncio server that asks for its socket itself. Change VERSION, then: sockshare reload web"""

import asyncio
import os
import signal

import sockshare

VERSION = "1"
answering: set["asyncio.Task[None]"] = set()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    task = asyncio.current_task()
    assert task is not None
    answering.add(task)
    task.add_done_callback(answering.discard)
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
    with sockshare.attach() as share:
        # asyncio listens again with its own backlog, which every duplicate shares: say circus's, not asyncio's 100.
        server = await asyncio.start_server(answer, sock=share.socket("web"), backlog=2048)
        share.ready("serving")
        await stopping.wait()
        server.close()
        await asyncio.gather(*answering)


asyncio.run(main())
