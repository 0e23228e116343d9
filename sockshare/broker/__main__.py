"""``python -m sockshare.broker``: what the host starts. Not for people."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import resource
import signal
import socket
import sys

from sockshare.kernel import logfile
from sockshare.kernel.channel import Message
from sockshare.kernel.descriptors import close_all

from .hostlink import HostLink
from .server import Broker
from .sparing import Sparing

log = logging.getLogger("sockshare.broker")

#: Bytes of data that the broker may use. A ZeroMQ peer can make it buffer without end; then it dies of this instead of
#: taking the machine along, and is started anew.
_MEMORY = 1 << 30
#: Seconds after which a thread that looks into processes lets the loop run: several may come before it.
_TURN = 0.001


async def serve(link: socket.socket) -> int:
    """Serve until the host ends; the exit status."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()
    brokers: list[Broker] = []

    def end(reason: str) -> None:
        if not ended.done():
            ended.set_result(reason)

    def hear(message: Message, fds: list[int]) -> None:
        if brokers:
            brokers[0].on_host_message(message, fds)
        elif message.get("type") == "hello":
            brokers.append(Broker(host, message, fds, end))
        else:
            log.error("link: the host did not say hello first")
            close_all(fds)
            end("the host did not say hello first")

    host = HostLink(link, on_message=hear, on_end=end)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, f"got {number.name}")
    log.info("broker: ends: %s", await ended)
    return 0


def main() -> int:
    """Run the broker."""
    parser = argparse.ArgumentParser(prog="python -m sockshare.broker", description="The broker; started by its host.")
    link = parser.add_mutually_exclusive_group(required=True)
    link.add_argument("--link-fd", type=int, help="the link: a connected AF_UNIX stream socket")
    link.add_argument("--link", metavar="PATH", help="the link: where the host listens for it")
    arguments = parser.parse_args()
    output = logfile.of_stderr()
    output.addFilter(Sparing())
    logfile.sparingly()
    logging.basicConfig(level=logging.INFO, format=logfile.FORMAT, handlers=[output])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # libzmq aborts the process that accepts without a free descriptor (libzmq issue 1306).
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    sys.setswitchinterval(_TURN)
    gc.freeze()  # a full collection takes 10 ms less without all that was imported, and no other thread runs meanwhile
    if arguments.link is None:
        return asyncio.run(serve(socket.socket(fileno=arguments.link_fd)))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(arguments.link)
    except OSError as error:
        log.error("broker: can't reach the host at %s: %s", arguments.link, error.strerror)
        return 1
    return asyncio.run(serve(sock))


if __name__ == "__main__":
    sys.exit(main())
