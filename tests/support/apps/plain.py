"""A plain asyncio program that uses the library: no framework, no ``sockshare exec``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import sockshare

BEHAVIOUR: dict[str, Any] = json.loads(Path(os.environ["APP_BEHAVIOUR"]).read_text())


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request a connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"GET /slow"):
        await asyncio.sleep(1)
    body = json.dumps({"version": BEHAVIOUR["version"], "pid": os.getpid()}).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def main() -> None:
    """Serve until SIGTERM, then finish what was begun."""
    with sockshare.attach() as share:
        listener = share.socket("web")
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        busy: set[asyncio.Task[None]] = set()

        async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            busy.add(task)
            try:
                await answer(reader, writer)
            finally:
                busy.discard(task)

        server = await asyncio.start_server(begin, sock=listener.dup())
        share.ready("serving")
        await stop.wait()
        server.close()
        while busy:
            await asyncio.wait(busy)


time.sleep(BEHAVIOUR.get("import", 0.0))
asyncio.run(main())
