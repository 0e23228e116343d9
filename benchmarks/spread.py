"""How connections are spread over 1, 2, 4, 8 processes, how fast they are taken, and how often those wake."""

from __future__ import annotations

import functools
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from benchmarks import figures
from benchmarks.ground import EXEC, Program, circusd, sleeps
from sockshare.cli.stage import free_port, wait_until
from sockshare.kernel import epoll

ROUNDS = 4
AT_ONCE = 16
PATIENCE = 2.0  # s after which a connection counts as lost

OURS = {
    "shared": Program("shared", "epoll {fd:shared}", EXEC),
    "exclusive": Program("exclusive", "gate exclusive"),
    "rotate": Program("rotate", "gate rotate"),
}


class Seen(NamedTuple):
    """What one load saw of one way."""

    rate: float  # connections a second
    sleeps: float  # a connection, all processes together
    counts: list[int]  # of each process
    lost: int

    def followed_by(self, other: Seen) -> Seen:
        """Both, one after the other."""
        mine, theirs = sum(self.counts), sum(other.counts)
        seconds = mine / self.rate + theirs / other.rate if mine and theirs else 1.0
        slept = (self.sleeps * mine + other.sleeps * theirs) / max(mine + theirs, 1)
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return Seen((mine + theirs) / seconds, slept, counts, self.lost + other.lost)

    @property
    def spread(self) -> str:
        """max/min over the processes."""
        most, least = max(self.counts), min(self.counts)
        return f"{most / least:.2f}" if least else f"{most} to 0"


class Client:
    """Connections of one load: who answered, and how many nobody did."""

    def __init__(self, port: int) -> None:
        self.address = ("127.0.0.1", port)
        self.answered: Counter[int] = Counter()
        self.lost = 0

    def one(self) -> None:
        """One connection, from its beginning to its end."""
        try:
            with socket.create_connection(self.address, PATIENCE) as sock:
                received = b""
                while data := sock.recv(64):
                    received += data
            self.answered[int(received)] += 1
        except (OSError, ValueError):
            self.lost += 1

    def paced(self, rate: float, seconds: float) -> None:
        """So many connections a second, one after the other."""
        begun = time.monotonic()
        for number in range(int(rate * seconds)):
            pause = begun + number / rate - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            self.one()

    def hurried(self, seconds: float) -> None:
        """`AT_ONCE` connections at a time, each followed by the next as soon as it is over."""
        poll, open_ = select.epoll(), dict[int, tuple[socket.socket, bytearray, float]]()
        end = time.monotonic() + seconds

        def connect() -> None:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(self.address)
            poll.register(sock, select.EPOLLIN)
            open_[sock.fileno()] = sock, bytearray(), time.monotonic()

        for _ in range(AT_ONCE):
            connect()
        while open_:
            for fd, _ in poll.poll(0.1):
                sock, received, _ = open_[fd]
                try:
                    data = sock.recv(64)
                except OSError:
                    data = b""
                received += data
                if data:
                    continue
                del open_[fd]
                sock.close()
                if received.endswith(b"\n"):
                    self.answered[int(received)] += 1
                else:
                    self.lost += 1
                if time.monotonic() < end:
                    connect()
            late = [fd for fd, (_, _, since) in open_.items() if time.monotonic() - since > PATIENCE]
            for fd in late:
                open_.pop(fd)[0].close()
                self.lost += 1
        poll.close()


def measure(port: int, pids: Sequence[int], load: Callable[[Client], None]) -> Seen:
    """Let *load* loose on the processes *pids*."""
    client = Client(port)
    before, start = sum(map(sleeps, pids)), time.monotonic()
    load(client)
    seconds, slept = time.monotonic() - start, sum(map(sleeps, pids)) - before
    count = sum(client.answered.values())
    strangers = set(client.answered) - set(pids)
    if strangers:
        raise RuntimeError(f"{strangers} answered, and not only {list(pids)}")
    return Seen(count / seconds, slept / max(count, 1), [client.answered[pid] for pid in pids], client.lost)


@contextmanager
def plain(kind: str, count: int) -> Iterator[tuple[int, list[int]]]:
    """So many workers of *kind* with nothing of ours between them; the port and their pids."""
    with ExitStack() as stack:
        if kind == "reuseport":
            port = free_port()
            arguments, fds = [kind, str(port)], []
        else:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
            port = listener.getsockname()[1]
            arguments, fds = [kind, str(listener.fileno())], [listener.fileno()]
        children = []
        try:
            for _ in range(count):
                command = [sys.executable, "-m", "benchmarks.workers", *arguments]
                children.append(subprocess.Popen(command, pass_fds=fds))
            for child in children:
                wait_until(partial(registered, child.pid), 20, "a worker waits")
            yield port, [child.pid for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()


def registered(pid: int) -> bool:
    """Whether the process waits for something."""
    return any(epoll.entries(pid, epfd) for epfd in epoll.epolls(pid))


def of(count: int, loads: Sequence[Callable[[Client], None]]) -> dict[str, list[Seen]]:
    """Every way with so many processes, under each of *loads*."""
    ways: dict[str, tuple[int, list[int]]] = {}
    with ExitStack() as stack:
        for name, kind in (("EPOLLEXCLUSIVE", "exclusive"), ("SO_REUSEPORT", "reuseport")):
            ways[name] = stack.enter_context(plain(kind, count))
        ground = stack.enter_context(circusd(OURS, count))
        wait_until(lambda: ground.registered("shared"), 30, "all have registered", 0.1)
        for name in ("exclusive", "rotate"):
            wait_until(partial(ground.in_line, name), 30, "all stand in line", 0.1)
        for name in OURS:
            ways[f"sockshare, {name}"] = ground.ports[name], ground.stage.pids(name)
            Client(ground.ports[name]).paced(100, 0.3)  # a program of the library waits for its first turn
        found: dict[str, list[Seen]] = {name: [] for name in ways}
        for load in loads:
            # By turns, as what else the machine does is to meet all alike.
            rounds = [{name: measure(*way, load) for name, way in ways.items()} for _ in range(ROUNDS)]
            for name, seen in found.items():
                seen.append(functools.reduce(Seen.followed_by, (one[name] for one in rounds)))
    return found


def run(counts: Sequence[int], rate: float, seconds: float) -> None:
    """Measure and report."""
    loads: list[Callable[[Client], None]] = [
        lambda client: client.paced(rate, seconds / ROUNDS),
        lambda client: client.hurried(seconds / ROUNDS),
    ]
    words = [f"{rate:g} a second", f"{AT_ONCE} at a time"]
    for count in counts:
        seen = of(count, loads)
        for at, word in enumerate(words):
            rows: list[tuple[str, ...]] = [
                ("", "connections/s", "to EPOLLEXCLUSIVE", "sleeps/connection", "max/min", "lost")
            ]
            peer = seen["EPOLLEXCLUSIVE"][at].rate
            for name, each in seen.items():
                one = each[at]
                alone = count > 1 and "exclusive" in name
                spread = f"{sum(one.counts)} to 0" if alone and not min(one.counts) else one.spread
                rate_, ratio = f"{one.rate:,.0f}", f"{one.rate / peer:.2f}"
                rows.append((name, rate_, ratio, f"{one.sleeps:.2f}", spread, str(one.lost)))
            notes = ["aim for rotate: max/min at most 1.1"] if count > 1 else []
            figures.show(
                f"{count} process{'es' if count > 1 else ''}, {word}, {seconds:g} s each, by turns", rows, notes
            )
