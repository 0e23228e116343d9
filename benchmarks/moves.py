"""A move of the registration between live processes: what it costs the broker.

Twice: the line of one socket in this very process, with real gates and real programs, against the bare system calls
that it can't do without; and a real broker that is asked for moves, with all that belongs to an answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from benchmarks import figures
from benchmarks.ground import EXEC, Program, circusd
from sockshare.broker.gates import Claimant, Gates
from sockshare.broker.hostlink import HostLink
from sockshare.broker.line import Line, Services
from sockshare.broker.worker import Worker
from sockshare.cli.stage import wait_until
from sockshare.core import registration_steps as rules
from sockshare.core.registration_steps import Means
from sockshare.core.spec import SocketSpec
from sockshare.kernel import epoll, logfile, peers
from sockshare.kernel.gate import Gate


class Cost(NamedTuple):
    """Seconds of each of many moves."""

    given: list[float]  # of this thread's processor time, until the next one has it
    cpu: list[float]  # of the same, in all; of this process's, where a thread works for it
    clock: list[float]


class TimedGate(Gate):
    """A gate that knows when one of its kind was opened last, in the processor time of its thread."""

    opened = 0.0

    def arm(self, sock_fd: int) -> None:
        """Open it."""
        super().arm(sock_fd)
        TimedGate.opened = time.thread_time()


def costs(work: Callable[[int], object], times: int) -> Cost:
    """What *work*, which is told how often it was done before, costs this thread."""
    cost = Cost([], [], [])
    for number in range(times):
        before, start = time.thread_time(), time.perf_counter()
        work(number)
        cost.clock.append(time.perf_counter() - start)
        cost.cpu.append(time.thread_time() - before)
        cost.given.append(TimedGate.opened - before)
    return cost


@contextmanager
def link() -> Iterator[HostLink]:
    """A link whose other end reads, in a process of its own, all that is said."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    reader = subprocess.Popen([sys.executable, "-c", "import os\nwhile os.read(0, 65536): pass"], stdin=theirs.fileno())
    theirs.close()
    try:
        yield HostLink(ours, on_message=lambda message, fds: None, on_end=lambda reason: None)
    finally:
        reader.kill()
        reader.wait()
        ours.close()


def line(host: HostLink, listener: socket.socket, registration: str, told: list[Any]) -> Line:
    """The line of *listener*; who is told of what is added to *told*, as ZeroMQ is not measured here."""
    gates = Gates(host, {})
    services = Services(
        host,
        gates,
        Worker("moves"),
        lambda caller, fields: told.append(fields),
        lambda *_: None,
        lambda name: None,
        lambda identity: None,
    )
    spec = SocketSpec(name="web", registration=registration)  # type: ignore[arg-type]
    return Line(services, spec, os.fstat(listener.fileno()).st_ino, listener.fileno())


def enter(to: Line, number: int, pid: int, means: Means, host: HostLink) -> str:
    """Another claim, of the process *pid*; its key."""
    key = f"{number:032x}"
    one = Claimant(key, "web", peers.identity(pid), pid, f"web:{number}", "web", means)
    if means is Means.GATE:
        one.gate = TimedGate()
        host.keep(f"gate:{key}", one.gate.fileno())
    to.claimants[key] = one
    to.enter(one, paused=False)
    return key


def gates(host: HostLink, listener: socket.socket, processes: int, times: int) -> Cost:
    """Moves between so many gates, by turns."""
    told: list[Any] = []
    ring = line(host, listener, "exclusive", told)
    keys = [enter(ring, number, os.getpid(), Means.GATE, host) for number in range(processes)]
    return costs(lambda number: ring.feed(rules.MoveTo(keys[(number + 1) % processes])), times)


def turns(host: HostLink, listener: socket.socket, processes: int, times: int) -> Cost:
    """Turns of `rotate` between so many gates."""
    ring = line(host, listener, "rotate", [])
    for number in range(processes):
        enter(ring, number, os.getpid(), Means.GATE, host)
    return costs(lambda number: ring.end_turn(), times)


@contextmanager
def programs(listener: socket.socket, count: int) -> Iterator[list[int]]:
    """So many programs that have registered *listener* and know nothing of us; their pids."""
    os.set_inheritable(listener.fileno(), True)
    command = [sys.executable, "-m", "benchmarks.workers", "epoll", str(listener.fileno())]
    children = [subprocess.Popen(command, pass_fds=[listener.fileno()]) for _ in range(count)]
    inode = os.fstat(listener.fileno()).st_ino
    try:
        for child in children:
            wait_until(partial(epoll.registrations, child.pid, [inode]), 20, "it has registered")
        yield [child.pid for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


async def suspensions(host: HostLink, listener: socket.socket, pids: list[int], times: int) -> Cost:
    """Moves between programs that know nothing of us, by turns."""
    ring = line(host, listener, "exclusive", [])
    keys = [enter(ring, number, pid, Means.SUSPEND, host) for number, pid in enumerate(pids)]
    await ring.settled()
    cost = Cost([], [], [])
    for number in range(times):
        before, start = time.process_time(), time.perf_counter()
        ring.feed(rules.MoveTo(keys[(number + 1) % len(keys)]))
        await ring.settled()
        cost.clock.append(time.perf_counter() - start)
        cost.cpu.append(time.process_time() - before)
    for pid in pids:
        epoll.resume_all(pid, {ring.inode: listener.fileno()})
    return cost


def bare_gates(listener: socket.socket, times: int) -> Cost:
    """The system calls alone: out of one epoll, into another."""
    first, second = select.epoll(), select.epoll()
    pair = [first, second]
    first.register(listener, select.EPOLLIN)

    def move(number: int) -> None:
        pair[number % 2].unregister(listener)
        pair[1 - number % 2].register(listener, select.EPOLLIN)

    with first, second:
        return costs(move, times)


def bare_suspensions(listener: socket.socket, pids: list[int], times: int) -> Cost:
    """Suspending one known entry, and resuming another, with nothing looked for."""
    inode = os.fstat(listener.fileno()).st_ino
    entries = [epoll.registrations(pid, [inode])[0] for pid in pids[:2]]
    suspended = [entry._replace(events=entry.marked) for entry in entries]
    epoll.suspend(entries[1], listener.fileno())

    def move(number: int) -> None:
        epoll.suspend(entries[number % 2], listener.fileno())
        epoll.resume(suspended[1 - number % 2], listener.fileno())

    cost = costs(move, times - times % 2)
    epoll.resume(suspended[1], listener.fileno())
    return cost


async def in_process(times: int) -> dict[str, Cost]:
    """All of it, logged as a broker logs."""
    output = logfile.LogFile(os.devnull)
    output.setFormatter(logging.Formatter(logfile.FORMAT))
    root = logging.getLogger()
    root.handlers, level = [output], root.level
    logfile.sparingly()
    root.setLevel(logging.INFO)
    found: dict[str, Cost] = {}
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, link() as host, programs(listener, 8) as pids:
            listener.setblocking(False)
            found["bare: DEL and ADD"] = bare_gates(listener, times)
            for count in (2, 8, 100):
                found[f"gate, {count} processes"] = gates(host, listener, count, times)
            for count in (2, 8, 100):
                found[f"a turn of rotate, {count} processes"] = turns(host, listener, count, times)
            found["bare: suspend one, resume another"] = bare_suspensions(listener, pids, times // 4)
            for count in (2, 8):
                found[f"suspend, {count} processes"] = await suspensions(host, listener, pids[:count], times // 4)
    finally:
        root.handlers = []
        root.setLevel(level)
        output.close()
    return found


def asked(times: int) -> dict[str, tuple[float, float]]:
    """Seconds of the broker's processor for each move that a command asks for, and its p50 of the clock."""
    found = {}
    with circusd(
        {"gate": Program("exclusive", "gate gate"), "suspend": Program("exclusive", "epoll {fd:suspend}", EXEC)}, 3
    ) as ground:
        broker = 0
        for name in ground.ports:
            wait_until(partial(ground.in_line, name), 30, f"{name} stands in line", 0.1)
        broker = ground.broker()
        for name in ground.ports:
            names = [one["process"] for one in ground.socket(name)["holders"]]
            clock = []
            before = figures.cpu_seconds(broker)
            for number in range(times):
                start = time.perf_counter()
                ground.ask("move", socket=name, process=names[number % len(names)])
                clock.append(time.perf_counter() - start)
            found[name] = (figures.cpu_seconds(broker) - before) / times, figures.median(clock)
    return found


def run(times: int) -> None:
    """Measure and report."""
    seen = asyncio.run(in_process(times))
    rows: list[tuple[str, ...]] = [("", "until it is given, p50", "in all, p50", "p99", "clock, p50", "aim")]
    for name, cost in seen.items():
        gates_are_moved = name.startswith(("gate", "a turn"))
        given = figures.microseconds(figures.median(cost.given)) if gates_are_moved else ""
        times_of = (figures.median(cost.cpu), figures.quantile(cost.cpu, 0.99), figures.median(cost.clock))
        rows.append((name, given, *map(figures.microseconds, times_of), "50 us" if gates_are_moved else ""))
    figures.show(
        f"Processor time of a move between live processes, in the broker's own code, {times} times",
        rows,
    )
    rows = [("", "broker's processor, mean", "answered, p50")]
    rows += [
        (name, figures.microseconds(cpu), figures.microseconds(clock))
        for name, (cpu, clock) in asked(times // 4).items()
    ]
    figures.show("A move that a command asks a broker for, which asks the manager who runs", rows)
