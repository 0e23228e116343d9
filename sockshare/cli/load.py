"""An open-loop load generator: requests leave when they are due, whether or not the ones before them were answered.

Every latency counts from the moment the request was *due*, so a server that stalls for two seconds shows two hundred
late requests a second, not one (the mistake of a closed loop is called coordinated omission). The generator is a
process of its own (``python -m sockshare.cli.load``), one epoll loop and no threads: a fresh connection costs it about
0.1 ms of CPU, so that it does not take what it measures. Kinds of requests:

* ``fresh:R``        R a second, one TCP connection each;
* ``keepalive:NxR``  N clients with R a second each over a connection they keep; as HTTP clients do, each repeats a
  request once, on a new connection, when its connection ended before any byte of the response (RFC 9110, 9.2.2);
* ``slow:R``         R a second to ``/slow``, one connection each;
* ``udp:R``          R datagrams a second, each from a socket of its own, answered by one datagram.

An answer is a JSON object with ``version`` and ``pid``. Times are ``time.monotonic()``, which all processes of one
machine share, so a record can be laid beside what another process did.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import math
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .measured import TIMEOUT, Record, Result


class Kind(NamedTuple):
    """One sort of request: ``clients`` sources of ``rate`` requests a second each."""

    name: str
    clients: int
    rate: float

    @classmethod
    def parse(cls, text: str) -> Kind:
        """Read ``fresh:200``, ``keepalive:8x10``, ``slow:5`` or ``udp:50``.

        Raises:
            ValueError: It is none of these.
        """
        name, _, amount = text.partition(":")
        clients, times, rate = amount.partition("x")
        if name not in ("fresh", "keepalive", "slow", "udp") or bool(times) != (name == "keepalive"):
            raise ValueError(f"can't read kind {text!r}: not fresh:R, keepalive:NxR, slow:R or udp:R")
        return cls(name, int(clients) if times else 1, float(rate if times else clients))


class Request:
    """A request that is due, or under way."""

    __slots__ = ("attempts", "client", "due", "finished", "kind")

    def __init__(self, kind: Kind, client: int, due: float) -> None:
        self.kind = kind
        self.client = client
        self.due = due
        self.attempts = 0
        self.finished = False


class Connection:
    """A socket, and the request that waits for its answer on it (none: it is idle)."""

    __slots__ = ("connected", "received", "request", "sock")

    def __init__(self, sock: socket.socket, request: Request) -> None:
        self.sock = sock
        self.request: Request | None = request
        self.received = b""
        self.connected = False


def parse_answer(received: bytes) -> tuple[int, bytes, bool] | None:
    """Status, body, and whether the connection may be kept; None while the answer is not complete."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    lines = head.lower().split(b"\r\n")
    status = int(lines[0].split()[1])
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
    if len(body) < length:
        return None
    return status, body[:length], b"connection: close" not in lines


class Generator:
    """Sends what *kinds* ask for to *address*, from :meth:`run` until it is told to stop."""

    def __init__(self, address: tuple[str, int], kinds: Sequence[Kind], timeout: float = TIMEOUT) -> None:
        self.address = address
        self.kinds = kinds
        self.timeout = timeout
        self.records: list[Record] = []
        self.worst_lag = 0.0  # s between due and sent; what this process itself was late
        self._poll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._under_way: deque[Request] = deque()  # in order of their deadlines, as the time-out is one for all
        self._kept: dict[tuple[Kind, int], Connection] = {}
        self._waiting: dict[tuple[Kind, int], deque[Request]] = {}

    def run(self, stopped: Callable[[], bool]) -> None:
        """Send until *stopped*, then wait for what is under way; returns when each request has its outcome."""
        start = time.monotonic()
        due: list[tuple[float, int, Kind, int]] = []
        for kind in self.kinds:
            for client in range(kind.clients):
                phase = (client / kind.clients) / kind.rate  # clients take turns, not all at once
                heapq.heappush(due, (start + phase, len(due), kind, client))
        sending = True
        while sending or self._under_way:
            now = time.monotonic()
            while sending and due and due[0][0] <= now:
                moment, order, kind, client = due[0]
                heapq.heapreplace(due, (moment + 1 / kind.rate, order, kind, client))
                self._begin(Request(kind, client, moment))
                now = time.monotonic()
            self._expire(now)
            pause = max(0.0, due[0][0] - now) if sending and due else 0.05
            # Rounded up to epoll's milliseconds: rounded down it would spin through the last one.
            for fd, events in self._poll.poll(math.ceil(min(pause, 0.05) * 1000) / 1000):
                connection = self._open.get(fd)
                if connection is not None:
                    self._advance(connection, events)
            sending = sending and not stopped()
        for connection in list(self._open.values()):
            self._close(connection)
        self._poll.close()

    def _begin(self, request: Request) -> None:
        lag = time.monotonic() - request.due
        self.worst_lag = max(self.worst_lag, lag)
        self._under_way.append(request)
        if request.kind.name != "keepalive":
            self._connect(request)
            return
        key = (request.kind, request.client)
        kept = self._kept.get(key)
        if kept is not None and kept.request is not None:
            self._waiting.setdefault(key, deque()).append(request)  # one at a time on a connection
        elif kept is not None:
            kept.request = request
            self._send(kept)
        else:
            self._connect(request)

    def _connect(self, request: Request) -> None:
        udp = request.kind.name == "udp"
        request.attempts += 1
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
        sock.setblocking(False)
        connection = Connection(sock, request)
        self._open[sock.fileno()] = connection
        if request.kind.name == "keepalive":
            self._kept[request.kind, request.client] = connection
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll.register(sock, select.EPOLLIN)
        try:
            sock.connect(self.address)
        except BlockingIOError:
            pass
        except OSError as error:
            self._broken(connection, error)
            return
        self._send(connection)  # over loopback the connection is most often there already

    def _send(self, connection: Connection) -> None:
        request = connection.request
        assert request is not None
        keep = request.kind.name == "keepalive"
        path = "/slow" if request.kind.name == "slow" else "/"
        text = f"GET {path} HTTP/1.1\r\nHost: load\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        try:
            connection.sock.send(text.encode())
        except BlockingIOError:  # still connecting
            self._poll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)
        except OSError as error:
            self._broken(connection, error)
        else:
            connection.connected = True

    def _advance(self, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT and not connection.connected:
            error = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._broken(connection, OSError(error, "connect"))
                return
            self._poll.modify(connection.sock, select.EPOLLIN)
            self._send(connection)
            return
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(connection, error)
            return
        if not data:
            self._broken(connection, EOFError("closed"))
            return
        connection.received += data
        request = connection.request
        if request is None:
            self._close(connection)  # nothing was asked
            return
        if request.kind.name == "udp":
            answer: tuple[int, bytes, bool] | None = (200, connection.received, False)
        else:
            answer = parse_answer(connection.received)
        if answer is None:
            return
        status, body, keep = answer
        self._answered(request, status, body)
        connection.received = b""
        connection.request = None
        if request.kind.name != "keepalive" or not keep:
            self._close(connection)
        self._next(request)

    def _next(self, request: Request) -> None:
        """Send what waited for the client of *request* to be free."""
        key = (request.kind, request.client)
        waiting = self._waiting.get(key)
        while waiting:
            following = waiting.popleft()
            if following.finished:
                continue  # it timed out in the queue
            kept = self._kept.get(key)
            if kept is None:
                self._connect(following)
            else:
                kept.request = following
                self._send(kept)
            return

    def _broken(self, connection: Connection, error: Exception) -> None:
        request, before_any_byte = connection.request, not connection.received
        self._close(connection)
        if request is None or request.finished:
            return
        refused = isinstance(error, OSError) and error.errno == 111  # ECONNREFUSED
        if request.kind.name == "keepalive" and before_any_byte and not refused and request.attempts < 2:
            if request.attempts == 0:  # it went out on a connection that was kept from an earlier one
                request.attempts = 1
            self._connect(request)
            return
        self._finish(request, "refused" if refused else "reset", detail=f"{type(error).__name__}: {error}")
        self._next(request)

    def _answered(self, request: Request, status: int, body: bytes) -> None:
        try:
            answer = json.loads(body)
            version, pid = str(answer["version"]), int(answer["pid"])
        except (ValueError, TypeError, KeyError):
            self._finish(request, "bad_answer", detail=f"{status} {body[:80]!r}")
            return
        if status == 200:
            self._finish(request, "ok", version, pid)
        else:
            self._finish(request, "bad_answer", version, pid, f"status {status}")

    def _finish(self, request: Request, outcome: str, version: str = "", pid: int = 0, detail: str = "") -> None:
        if request.finished:
            return
        request.finished = True
        latency = time.monotonic() - request.due
        attempts = max(1, request.attempts)
        self.records.append(
            Record(request.kind.name, request.due, latency, outcome, version, pid, attempts, detail),
        )

    def _expire(self, now: float) -> None:
        while self._under_way and (self._under_way[0].finished or self._under_way[0].due + self.timeout <= now):
            request = self._under_way.popleft()
            if request.finished:
                continue
            self._finish(request, "timed_out", detail=f"no answer in {self.timeout} s")
            for connection in list(self._open.values()):
                if connection.request is request:
                    self._close(connection)
                    self._next(request)
                    break

    def _close(self, connection: Connection) -> None:
        self._open.pop(connection.sock.fileno(), None)
        for key, kept in list(self._kept.items()):
            if kept is connection:
                del self._kept[key]
        connection.sock.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate load until stdin ends or *duration* is over; print the start time, then the records as JSON."""
    parser = argparse.ArgumentParser(prog="python -m sockshare.cli.load", description="open-loop load generator")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("kinds", nargs="+", type=Kind.parse, metavar="KIND", help="fresh:R keepalive:NxR slow:R udp:R")
    parser.add_argument("--timeout", type=float, default=TIMEOUT)
    parser.add_argument("--duration", type=float, default=math.inf)
    parser.add_argument("--summary", action="store_true", help="print counts instead of records")
    options = parser.parse_args(arguments)
    gc.disable()  # a collection would be a pause, and nothing here is cyclic
    generator = Generator((options.host, options.port), options.kinds, options.timeout)
    end = time.monotonic() + options.duration
    watch = select.poll()
    if options.duration == math.inf:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this: our stdin ends with it
        watch.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    print(time.monotonic(), flush=True)
    generator.run(lambda: time.monotonic() >= end or bool(watch.poll(0)))
    result = Result(generator.records, generator.worst_lag)
    document = {"worst_lag": generator.worst_lag, "records": result.records}
    print(json.dumps(result.summary() if options.summary else document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
