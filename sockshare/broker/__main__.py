"""``python -m sockshare.broker``: what the host starts. Not for people."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from typing import Any, NoReturn

from sockshare.core.hello import Unreadable, read_hello
from sockshare.kernel import logfile
from sockshare.kernel.channel import Message
from sockshare.kernel.descriptors import close_all, make_room

from . import memory
from .hostlink import HostLink
from .server import Broker
from .sparing import Sparing

log = logging.getLogger("sockshare.broker")

#: The exit status of a broker that can't go on.
_FAILED = 1
#: Seconds after which a thread that looks into processes lets the loop run: several may come before it.
_TURN = 0.001


async def serve(link: socket.socket) -> int:
    """Serve until the host ends, or until this broker can't serve it any more; the exit status."""
    loop = asyncio.get_running_loop()
    memory.watch(loop)
    ended: asyncio.Future[int] = loop.create_future()
    brokers: list[Broker] = []

    def end(reason: str, status: int = 0) -> None:
        if not ended.done():
            log.log(logging.ERROR if status else logging.INFO, "broker: ends: %s", reason)
            ended.set_result(status)

    def hear(message: Message, fds: list[int]) -> None:
        if ended.done():
            close_all(fds)
            return
        try:
            if brokers:
                brokers[0].on_host_message(message, fds)
            elif message.get("fds") and not fds:
                end("can't take the sockets: it may open no more descriptors (RLIMIT_NOFILE)", _FAILED)
            elif message.get("type") == "hello":
                brokers.append(Broker(host, read_hello(message, len(fds)), fds, end))
            else:
                # A later host may say something before; one that never says hello ends us, at the latest.
                log.warning("link: a message of type %r was passed over", message.get("type"))
                close_all(fds)
        except Unreadable as error:
            host.give_up(str(error))
            end(str(error), _FAILED)

    def fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # Whatever did not happen would be missing from now on, and nobody would know. The next broker begins anew.
        error = context.get("exception")
        log.error("broker: %s", context["message"], exc_info=error)
        if isinstance(error, Exception):
            end(f"it has a bug ({error!r})", _FAILED)

    loop.set_exception_handler(fail)
    host = HostLink(link, on_message=hear, on_end=end)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, f"got {number.name}")
    return await ended


def main() -> int:
    """Run the broker."""
    parser = argparse.ArgumentParser(prog="python -m sockshare.broker", description="The broker; started by its host.")
    link = parser.add_mutually_exclusive_group(required=True)
    link.add_argument("--link-fd", type=int, help="the link: a connected AF_UNIX stream socket")
    link.add_argument("--link", metavar="PATH", help="the link: where the host listens for it")
    arguments = parser.parse_args()
    output = logfile.of_stderr()
    output.addFilter(memory.NoMemory())
    output.addFilter(Sparing())
    logfile.sparingly()
    logging.basicConfig(level=logging.INFO, format=logfile.FORMAT, handlers=[output])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # libzmq aborts the process that accepts without a free descriptor (libzmq issue 1306).
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    make_room()  # ZeroMQ's threads and ours come later
    memory.limit()
    sys.setswitchinterval(_TURN)
    gc.freeze()  # a full collection takes 10 ms less without all that was imported, and no other thread runs meanwhile
    if arguments.link is None:
        return _run(socket.socket(fileno=arguments.link_fd))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(arguments.link)
    except OSError as error:
        log.error("broker: can't reach the host at %s: %s", arguments.link, error.strerror)
        return 1
    return _run(sock)


def _run(link: socket.socket) -> NoReturn:
    status = asyncio.new_event_loop().run_until_complete(serve(link))
    logging.shutdown()
    # Not by the interpreter's way: it would wait for threads, such as those that close what others let linger.
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
