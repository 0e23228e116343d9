"""A UDP echo that knows nothing of sockshare but a descriptor's number. Change VERSION, then reload it.

supervisorctl sockshare reload echo
"""

import asyncio
import os
import signal
import socket
from typing import Any

VERSION = "1"


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(f"version {VERSION}, pid {os.getpid()}: ".encode() + data, address)


async def main() -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    shared = socket.socket(fileno=int(os.environ["SOCKSHARE_FD_ECHO"]))
    transport, _ = await loop.create_datagram_endpoint(Echo, sock=shared)
    await stopping.wait()
    transport.close()


asyncio.run(main())
