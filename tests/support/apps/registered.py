"""A server that registers an inherited listener in one of many ways: `registered.py MODE NUMBER LISTENER`.

It answers every connection with its pid. It says ``ready`` on stdout once registered, obeys one-letter lines on
stdin (an answer line each), and ends when stdin does. The listener is registered under the descriptor NUMBER.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys

FLAGS = {
    "level": select.EPOLLIN,
    "edge": select.EPOLLIN | select.EPOLLET,
    "oneshot": select.EPOLLIN | select.EPOLLONESHOT,
    "slow": select.EPOLLIN | select.EPOLLONESHOT,  # does not re-arm until it is told to
    "exclusive": select.EPOLLIN | select.EPOLLEXCLUSIVE,
    "edge-exclusive": select.EPOLLIN | select.EPOLLET | select.EPOLLEXCLUSIVE,
    "many": select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLRDNORM | select.EPOLLMSG,
    "none": select.EPOLLIN,
    "tree": select.EPOLLIN,
    "inherited": select.EPOLLIN,
}
STDIN, STDOUT = 900, 901


def say(line: str) -> None:
    os.write(STDOUT, line.encode() + b"\n")


def answer(connection: socket.socket) -> None:
    with connection:
        connection.settimeout(5)
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())


def accept(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        answer(connection)


def serve(mode: str, listener: socket.socket, epoll: select.epoll, *, commands: bool) -> None:
    flags = FLAGS[mode]
    if commands:
        epoll.register(STDIN, select.EPOLLIN)
    while True:
        for fd, _ in epoll.poll():
            if fd == STDIN:
                command = os.read(STDIN, 2)
                if not command:
                    return
                obey(command, flags, listener, epoll)
            else:
                accept(listener)
                if mode == "oneshot":
                    epoll.modify(listener, flags)


def obey(command: bytes, flags: int, listener: socket.socket, epoll: select.epoll) -> None:
    try:
        if command == b"u\n":
            epoll.unregister(listener)
        elif command == b"r\n":
            epoll.register(listener, flags)
        elif command == b"a\n":
            epoll.modify(listener, flags)
        elif command == b"f\n":
            fork("level", listener)
        say("ok")
    except OSError as error:
        say(f"error {error.errno}")


def fork(mode: str, listener: socket.socket, epoll: select.epoll | None = None) -> None:
    parent = os.getpid()
    if os.fork() == 0:
        # It ends with its parent, even a killed one: the parent's death signal, and a look whether it came too late.
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        if epoll is None:
            epoll = select.epoll()
            epoll.register(listener, FLAGS[mode])
        say("worker")
        serve(mode, listener, epoll, commands=False)


def epolls(mode: str, listener: socket.socket) -> None:
    epoll = select.epoll()
    if mode == "tree":
        for _ in range(2):
            fork(mode, listener)
    elif mode == "inherited":
        epoll.register(listener, FLAGS[mode])
        os.dup(epoll.fileno())
        for _ in range(2):
            fork(mode, listener, epoll)
        epoll = select.epoll()
    elif mode != "none":
        epoll.register(listener, FLAGS[mode])
    say("ready")
    serve(mode, listener, epoll, commands=True)


async def asynchronous(listener: socket.socket) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())
        await writer.drain()
        writer.close()

    await asyncio.start_server(handle, sock=listener)
    say("ready")
    await asyncio.get_running_loop().run_in_executor(None, os.read, STDIN, 2)
    os._exit(0)


def main() -> None:
    mode, number, inherited = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.dup2(0, STDIN)
    os.dup2(1, STDOUT)
    os.dup2(inherited, number)
    listener = socket.socket(fileno=number)
    if mode in ("asyncio", "uvloop"):
        loop: asyncio.AbstractEventLoop
        if mode == "uvloop":
            import uvloop

            loop = uvloop.new_event_loop()
        else:
            loop = asyncio.new_event_loop()
        loop.run_until_complete(asynchronous(listener))
    else:
        epolls(mode, listener)


if __name__ == "__main__":
    main()
