"""The two bare exchanges that a hand-out is made of, each as the shortest Python that does it.

``python -m benchmarks.peers descriptors PATH`` and ``... zmq PATH`` serve them until they are ended.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from types import TracebackType
from typing import Protocol

import zmq

from sockshare.kernel import descriptors

TICKET = bytes(16)
QUESTION = b'{"v":1,"id":1,"op":"ticket","socket":"web","pid":1234}'
ANSWER = b'{"id":1,"ok":true,"socket":"web","ticket":"00000000000000000000000000000000"}'


class Exchange(Protocol):
    """One side of a bare exchange, already set up."""

    def once(self) -> None:
        """Do it once."""

    def close(self) -> None:
        """Give everything back."""


class Descriptors:
    """Connect, show 16 bytes, receive one descriptor, close both."""

    def __init__(self, path: str) -> None:
        self.path = path

    def once(self) -> None:
        """Do it once."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(self.path)
            sock.send(TICKET)
            _, (fd,) = descriptors.receive(sock, 64, 1)
            os.close(fd)

    def close(self) -> None:
        """There is nothing to give back."""


class RoundTrip:
    """A question and an answer over a ZeroMQ connection that stays."""

    def __init__(self, path: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(f"ipc://{path}")

    def once(self) -> None:
        """Do it once."""
        self.socket.send(QUESTION)
        self.socket.recv()

    def close(self) -> None:
        """End the connection."""
        self.context.destroy(linger=0)


def serve_descriptors(path: str) -> None:
    """Ask the kernel who connects, and send a descriptor."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, socket.socket() as shared:
        listener.bind(path)
        listener.listen(64)
        print(flush=True)
        while True:
            sock, _ = listener.accept()
            with sock:
                struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                sock.recv(64)
                descriptors.send(sock, b"+web", [shared.fileno()])


def serve_zmq(path: str) -> None:
    """Answer."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(f"ipc://{path}")
    print(flush=True)
    while True:
        route: bytes = router.recv()
        router.recv()
        router.send_multipart([route, ANSWER])


class Server:
    """A server of one kind in a process of its own; ends with its block."""

    def __init__(self, kind: str, path: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "benchmarks.peers", kind, path], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def __enter__(self) -> int:
        return self.process.pid

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    {"descriptors": serve_descriptors, "zmq": serve_zmq}[sys.argv[1]](sys.argv[2])
