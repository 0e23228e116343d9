"""A client that asks as fast as it is answered, and one that asks once."""

from __future__ import annotations

import json
import select
import socket
import time
from typing import NamedTuple

CONNECTIONS = 8
KEPT = b"GET / HTTP/1.1\r\nHost: serve\r\n\r\n"
CLOSED = b"GET / HTTP/1.1\r\nHost: serve\r\nConnection: close\r\n\r\n"


def closed_loop(port: int, seconds: float, keep: bool) -> float:
    """Requests a second over `CONNECTIONS` at a time, kept or one for each request."""
    poll = select.epoll()
    open_: dict[int, tuple[socket.socket, bytearray]] = {}

    def connect() -> None:
        sock = socket.create_connection(("127.0.0.1", port), 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.send(KEPT if keep else CLOSED)
        open_[sock.fileno()] = sock, bytearray()
        poll.register(sock, select.EPOLLIN)

    for _ in range(CONNECTIONS):
        connect()
    answered, start = 0, time.monotonic()
    while time.monotonic() < start + seconds:
        for fd, _ in poll.poll(5):
            sock, received = open_[fd]
            data = sock.recv(65536)
            received += data
            if keep and received.endswith(b"}"):
                answered += 1
                received.clear()
                sock.send(KEPT)
            elif not keep and not data:
                answered += 1
                del open_[fd]
                sock.close()
                connect()
            elif not data:
                raise ConnectionError(f"port {port} closed a connection that was to be kept: {bytes(received)!r}")
    rate = answered / (time.monotonic() - start)
    for sock, _ in open_.values():
        sock.close()
    poll.close()
    return rate


def latencies(port: int, requests: int) -> list[float]:
    """Seconds of each of *requests*, one after the other on one connection."""
    seen = []
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(requests):
            start = time.perf_counter()
            sock.send(KEPT)
            received = b""
            while not received.endswith(b"}"):
                data = sock.recv(65536)
                if not data:
                    raise ConnectionError(f"port {port} closed a connection that was to be kept: {received!r}")
                received += data
            seen.append(time.perf_counter() - start)
    return seen


class Answer(NamedTuple):
    """What the test application says."""

    version: str
    pid: int


def ask(port: int) -> Answer | None:
    """One request on a connection of its own; None if it is not answered."""
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.send(CLOSED)
            while data := sock.recv(65536):
                received += data
        answer = json.loads(received.partition(b"\r\n\r\n")[2])
    except (OSError, ValueError):
        return None
    return Answer(answer["version"], answer["pid"])
