"""A server on descriptor 3 whose handler of SIGTERM ends it at once, as that of daphne does.

``abrupt SECONDS`` leaves a connection open for so long whose client has closed its side, and reads no more of it, as
hypercorn does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from tests.support.apps import behaviour


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split()[1].decode()
            if path.startswith("/slow"):
                await asyncio.sleep(1)
            _, body = behaviour.answer("/") or (500, b"")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    except asyncio.IncompleteReadError:
        if sys.argv[1:]:
            await asyncio.sleep(float(sys.argv[1]))
    finally:
        writer.close()


async def _main() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
    await asyncio.start_server(_serve, sock=behaviour.listener())
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
