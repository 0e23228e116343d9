"""A server in the manner of Go's: it takes what LISTEN_FDS says it has. Change VERSION, then reload.

It knows nothing of sockshare. Under systemd's socket activation it would run as it is.
"""

import asyncio
import os
import signal
import socket

VERSION = "1"


def inherited() -> dict[str, socket.socket]:
    """The sockets that were passed on, by name (sd_listen_fds_with_names(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ["LISTEN_FDNAMES"].split(":")
    return {name: socket.socket(fileno=3 + index) for index, name in enumerate(names)}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = f"version {VERSION}, pid {os.getpid()}\n".encode()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def main() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    sockets = inherited()
    servers = [await asyncio.start_server(answer, sock=sockets["web"])]
    servers.append(await asyncio.start_unix_server(answer, sock=sockets["admin"]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])  # sd_notify(3)
    await stopping.wait()
    for server in servers:
        server.close()
    await asyncio.sleep(0.1)  # for what was just accepted


asyncio.run(main())
