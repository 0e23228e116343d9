"""A load of which every piece can be followed: numbered datagrams, or connections known by their client's port.

``python -m tests.support.numbered PORT KIND RATE`` sends, KIND ``tcp`` or ``udp``, RATE a second whatever becomes of
them, until its stdin ends; then it waits for what is under way, and prints what came of it as JSON.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

TIMEOUT = 5.0  # s from when a connection was due to the end of its answer
REQUEST = b"GET / HTTP/1.0\r\n\r\n"


class Piece(NamedTuple):
    """One connection, or one datagram."""

    number: int  # the client's port, or the datagram's number
    due: float  # monotonic seconds
    latency: float
    outcome: str  # ok, refused, reset, timed_out; a datagram: sent, refused


class Outcome(NamedTuple):
    """What came of a load."""

    pieces: list[Piece]

    @property
    def outcomes(self) -> Counter[str]:
        """How many ended how."""
        return Counter(piece.outcome for piece in self.pieces)

    def failures(self) -> list[Piece]:
        """Those that were not served."""
        return [piece for piece in self.pieces if piece.outcome not in ("ok", "sent")]


class _Client:
    __slots__ = ("due", "port", "received", "sock")

    def __init__(self, port: int, due: float) -> None:
        self.due = due
        self.received = b""
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.bind(("127.0.0.1", 0))  # so that its number is known before anything can fail
        self.port = self.sock.getsockname()[1]
        self.sock.connect_ex(("127.0.0.1", port))


def _ended(client: _Client, events: int) -> str | None:
    """What became of it; None: it goes on."""
    error = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        return "refused" if error == 111 else "reset"
    try:
        if events & select.EPOLLOUT:
            client.sock.send(REQUEST)
        if events & (select.EPOLLIN | select.EPOLLHUP):
            data = client.sock.recv(4096)
            client.received += data
            if not data:
                return "ok" if client.received.endswith(b"}") else "reset"
    except BlockingIOError:
        pass
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "reset"
    return None


def connections(port: int, rate: float, stop: select.poll) -> list[Piece]:
    """An open loop of connections."""
    pieces: list[Piece] = []
    under_way: dict[int, _Client] = {}
    poll = select.epoll()
    due, going = time.monotonic(), True
    while going or under_way:
        now = time.monotonic()
        going = going and not stop.poll(0)
        while going and due <= now:
            client = _Client(port, due)
            under_way[client.sock.fileno()] = client
            poll.register(client.sock, select.EPOLLOUT)
            due += 1 / rate
        for fd, events in poll.poll(min(max(due - now, 0.0), 0.05) if going else 0.05):
            client = under_way[fd]
            outcome = _ended(client, events)
            if outcome is None:
                poll.modify(fd, select.EPOLLIN)
                continue
            pieces.append(Piece(client.port, client.due, time.monotonic() - client.due, outcome))
            del under_way[fd]
            client.sock.close()
        for fd, client in list(under_way.items())[:8]:  # the oldest are first
            if client.due + TIMEOUT < now:
                pieces.append(Piece(client.port, client.due, now - client.due, "timed_out"))
                del under_way[fd]
                client.sock.close()
    return pieces


def datagrams(port: int, rate: float, stop: select.poll) -> list[Piece]:
    """Numbered from 1 on."""
    pieces: list[Piece] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        due = time.monotonic()
        while not stop.poll(max(0, int((due - time.monotonic()) * 1000))):
            number = len(pieces) + 1
            try:
                sock.send(number.to_bytes(4, "big") + b"." * 60)
                outcome = "sent"
            except ConnectionRefusedError:
                outcome = "refused"
            pieces.append(Piece(number, due, 0.0, outcome))
            due += 1 / rate
    return pieces


class Pelting:
    """A load in a process of its own; a context manager ends it."""

    def __init__(self, port: int, kind: str, rate: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.numbered", str(port), kind, str(rate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"can't send: the sender ended (status {self._process.wait()})")

    def stop(self) -> Outcome:
        """Send no more, wait for what is under way, and say what came of it."""
        output, _ = self._process.communicate()
        return Outcome([Piece(*piece) for piece in json.loads(output)])

    def __enter__(self) -> Pelting:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def main() -> None:
    """Send until stdin ends."""
    port, kind, rate = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    stop = select.poll()
    stop.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    print("ready", flush=True)
    print(json.dumps((connections if kind == "tcp" else datagrams)(port, rate, stop)))


if __name__ == "__main__":
    main()
