"""The holder is SIGKILLed: how long until the next one has answered, beside flock and nginx."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks import figures
from benchmarks.ground import EXEC, Program, circusd, inode_of
from sockshare.cli.stage import free_port, wait_until
from sockshare.core.errors import NotPermitted
from sockshare.kernel import epoll, processes

PROCESSES = 3
ASK = 5.0  # s that an answer may take
GET = b"GET / HTTP/1.0\r\n\r\n"

NGINX = """
daemon off;
worker_processes {processes};
error_log {directory}/error.log;
pid {directory}/pid;
events {{ accept_mutex on; }}
http {{
  access_log off;
  server {{ listen 127.0.0.1:{port}; return 200 "$pid\\n"; }}
}}
"""


class Way:
    """One way to keep processes from serving until it is their turn; *stands*: all are there, and one serves."""

    def __init__(self, port: int, stands: Callable[[], bool], request: bytes = b"") -> None:
        self.port = port
        self.stands = stands
        self.request = request
        self.samples: list[float] = []

    def once(self) -> None:
        """Kill the process that answers, and ask again at once; how long until another one has answered.

        Raises:
            OSError: Nobody did.
        """
        wait_until(self.stands, 30, "all processes stand by", 0.05)
        holder = ask(self.port, self.request)
        pidfd = os.pidfd_open(holder)
        try:
            start = time.perf_counter()
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            successor = ask(self.port, self.request)
            self.samples.append(time.perf_counter() - start)
        finally:
            os.close(pidfd)
        if successor == holder:
            raise RuntimeError(f"pid {holder} answered after it was killed")


def ask(port: int, request: bytes = b"") -> int:
    """The pid of the process that answers on *port*.

    Raises:
        OSError: Nobody does.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), ASK) as sock:
        if request:
            sock.send(request)
        while data := sock.recv(4096):
            received += data
    return int(received.rpartition(b"\r\n\r\n")[2])


def waits_for_lock(path: Path) -> bool:
    """Whether one process has the lock on *path*, and the others wait for it (/proc/locks, proc(5))."""
    try:
        inode = b":%d " % path.stat().st_ino
    except FileNotFoundError:
        return False
    lines = [line for line in Path("/proc/locks").read_bytes().splitlines() if inode in line]
    return len(lines) == PROCESSES and sum(b"->" in line for line in lines) == PROCESSES - 1


@contextmanager
def nginx(port: int) -> Iterator[Callable[[], bool]]:
    """An nginx whose workers take turns by its accept_mutex; whether they are there, and one has registered."""
    directory = Path(tempfile.mkdtemp(prefix="ss-"))
    configuration, log = directory / "nginx.conf", str(directory / "error.log")
    configuration.write_text(NGINX.format(processes=PROCESSES, directory=directory, port=port))
    command = ["nginx", "-p", str(directory), "-c", str(configuration), "-e", log]
    master = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stands() -> bool:
        try:
            inode = inode_of(port)
            workers = [pid for pid in processes.tree(master.pid) if pid != master.pid and processes.alive(pid)]
            serving = [pid for pid in workers if epoll.registrations(pid, [inode], tree=False)]
        except (LookupError, NotPermitted, ProcessLookupError):
            return False
        return len(workers) == PROCESSES and len(serving) == 1

    try:
        yield stands
    finally:
        master.terminate()
        try:
            master.wait(5)
        except subprocess.TimeoutExpired:
            master.kill()
            master.wait()
        shutil.rmtree(directory, ignore_errors=True)


def measure(rounds: int, seconds: float) -> tuple[dict[str, list[float]], list[str]]:
    """Seconds of each way, which take turns, for no longer than *seconds*; and what could not be measured."""
    with tempfile.TemporaryDirectory(prefix="ss-") as directory, ExitStack() as stack:
        lock, notes = Path(directory) / "lock", []
        programs = {
            "flock": Program("shared", f"flock {{fd:flock}} {lock}", EXEC),
            "heavy": Program("shared", f"heavy {{fd:heavy}} {lock}-heavy", EXEC),
            "line": Program("exclusive", "line line"),
            "gate": Program("exclusive", "streams gate"),
            "block": Program("exclusive", "gate block"),
            "suspend": Program("exclusive", "epoll {fd:suspend}", EXEC),
        }
        ground = stack.enter_context(circusd(programs, PROCESSES))
        ways = {
            "flock(2), next waiter": Way(ground.ports["flock"], partial(waits_for_lock, lock)),
            "the same, attached": Way(ground.ports["heavy"], partial(waits_for_lock, Path(f"{lock}-heavy"))),
            "gate, the same loop": Way(ground.ports["line"], partial(ground.in_line, "line")),
            "gate, aio.start_server": Way(ground.ports["gate"], partial(ground.in_line, "gate")),
            "gate, with registration()": Way(ground.ports["block"], partial(ground.in_line, "block")),
            "suspend, any program": Way(ground.ports["suspend"], partial(ground.in_line, "suspend")),
        }
        if shutil.which("nginx"):
            port = free_port()
            ways["nginx, accept_mutex"] = Way(port, stack.enter_context(nginx(port)), GET)
        else:
            notes.append("nginx is not installed: not compared")
        end = time.monotonic() + seconds
        for _ in range(rounds):
            if time.monotonic() > end:
                break
            for name, way in ways.items():
                try:
                    way.once()
                except OSError as error:
                    notes.append(f"{name}: {error}")
                    if not way.samples:
                        raise
        return {name: way.samples for name, way in ways.items()}, notes


def report(samples: Mapping[str, list[float]], notes: list[str]) -> None:
    """Print the table."""
    flock = figures.median(samples["flock(2), next waiter"])
    rows: list[tuple[str, ...]] = [("", "p50", "p99", "worst", "ratio to flock", "aim")]
    aims = {"gate, the same loop": "1.5", "suspend, any program": "2"}
    for name, seen in samples.items():
        if not seen:
            continue
        middle = figures.median(seen)
        times = (middle, figures.quantile(seen, 0.99), max(seen))
        rows.append((name, *map(figures.fine, times), f"{middle / flock:.2f}", aims.get(name, "")))
    count = max(map(len, samples.values()))
    what = f"SIGKILL of the one that serves, until another has answered, {count} times, {PROCESSES} processes"
    figures.show(what, rows, [*notes, "aim for p99: under 20 ms"])


def run(rounds: int, seconds: float) -> None:
    """Measure and report."""
    report(*measure(rounds, seconds))
