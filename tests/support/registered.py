"""Real server processes that have registered a listener which the test holds too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from sockshare.kernel import epoll, processes
from sockshare.kernel.epoll import Registration

APP = Path(__file__).parent / "apps" / "registered.py"
ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 20.0


def listen(host: str = "127.0.0.1", backlog: int = 256) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.bind((host, 0))
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def ask(listener: socket.socket, timeout: float = DEADLINE) -> int:
    """One request; the pid of the process that answered."""
    with socket.create_connection(listener.getsockname()[:2], timeout=timeout) as client:
        return finish(client)


def finish(client: socket.socket) -> int:
    client.sendall(b"GET / HTTP/1.0\r\nHost: test\r\n\r\n")
    data = b""
    while chunk := client.recv(4096):
        data += chunk
    return int(data.split(b"\r\n\r\n", 1)[1])


def tally(listener: socket.socket, count: int = 30) -> dict[int, int]:
    """How many of *count* requests each process answered."""
    return dict(Counter(ask(listener) for _ in range(count)))


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {what}"
        time.sleep(0.005)


Started = TypeVar("Started", bound="Server")


class Server:
    """A child that has the listener registered; ended by its pid when the block is left."""

    def __init__(self, listener: socket.socket, command: Sequence[str], environment: dict[str, str] | None = None):
        self.listener = listener
        self.process = subprocess.Popen(
            [*command],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            cwd=ROOT,
        )
        self.pid = self.process.pid

    def __enter__(self: Started) -> Started:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(0 if exception[0] else 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def tell(self, command: str) -> str:
        """Send a command of one letter and return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        return self.line()

    def rests(self) -> bool:
        """Whether it has done all that it was woken for: until then it takes what comes, registered or not."""
        return processes.state(self.pid) == "S"

    @property
    def registrations(self) -> list[Registration]:
        return epoll.registrations(self.pid, [inode(self.listener)])

    @property
    def registration(self) -> Registration:
        (only,) = self.registrations
        return only

    @property
    def sockets(self) -> dict[int, int]:
        return {inode(self.listener): self.listener.fileno()}


def start(listener: socket.socket, mode: str, number: int = 77) -> Server:
    """Start the test application in *mode* and wait until it is registered."""
    server = Server(listener, [sys.executable, str(APP), mode, str(number), str(listener.fileno())])
    lines = [server.line() for _ in range({"tree": 3, "inherited": 3}.get(mode, 1))]
    if "ready" not in lines:
        server.__exit__(True)
        raise AssertionError(f"{mode}: the server said {lines}")
    if mode != "none":
        until(lambda: bool(server.registrations), f"{mode}: registered")  # uvloop registers when it first waits
    return server
