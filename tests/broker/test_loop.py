"""The broker answers everybody within 20 ms, whatever it looks at and whoever does not read; each test has a real one.

How long it does not is asked at its door (`tests.support.pings`). What other processes have the processors for is not
its doing, and left out; with ``-m soak``, on a machine that does nothing else, all of it counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sockshare.cli.stage import wait_until
from sockshare.kernel.descriptors import ROOM
from tests.support import pings
from tests.support.door import Dialogue
from tests.support.hosted import SAYS

BOUND = 0.020  # s
SOAK = (pytest.mark.soak, pytest.mark.timeout(600))


class Hosted(NamedTuple):
    """See `tests.support.hosted`."""

    directory: Path
    host: int
    broker: int
    pids: list[int]
    ports: list[int]


@contextmanager
def hosted(directory: Path, processes: int = 1, sockets: int = 1, kind: str = "epoll") -> Iterator[Hosted]:
    """A host with a broker, and processes with sockets; nothing of it is left."""
    words = [sys.executable, "-m", "tests.support.hosted", str(directory), str(processes), str(sockets), kind]
    host = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pids = []
    try:
        assert host.stdout is not None
        facts = json.loads(host.stdout.readline())
        pids = [facts["broker"], *facts["pids"]]
        yield Hosted(directory, host.pid, **facts)
    finally:
        host.send_signal(signal.SIGCONT)
        try:
            host.communicate(timeout=20)
        finally:
            host.kill()
            host.wait()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def responsive(one: Hosted, soak: bool = False) -> Iterator[None]:
    """The broker answers at its door within the bound, all the while."""
    words = [sys.executable, pings.__file__, str(one.directory / "door"), str(one.broker)]
    asking = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "begun\n"
        yield
        count, own, wall = json.loads(asking.communicate(timeout=60)[0])
    finally:
        asking.kill()
        asking.wait()
    print(f"{count} answers, the longest after {wall * 1000:.1f} ms, {own * 1000:.1f} without others")
    assert count > 3
    assert (wall if soak else own) < BOUND


@contextmanager
def dialogue(one: Hosted) -> Iterator[Dialogue]:
    asking = Dialogue(str(one.directory))
    try:
        yield asking
    finally:
        asking.close()


def many() -> int:
    """How many connections one process may have here, at most 10,000."""
    return min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200)


@contextmanager
def connected(port: int, count: int) -> Iterator[None]:
    """So many connections to *port*, all of them accepted."""
    program = (
        "import resource, socket, sys\n"
        "most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n"
        f"kept = [socket.create_connection(('127.0.0.1', {port})) for _ in range({count})]\n"
        "print('there', flush=True)\n"
        "sys.stdin.read()\n"
    )
    clients = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert clients.stdout is not None
        assert clients.stdout.readline() == "there\n"
        yield
    finally:
        clients.kill()
        clients.communicate()


def ask(asking: Dialogue, op: str, **fields: Any) -> dict[str, Any]:
    """The answer to a request that is made once."""
    number = asking.send(op, **fields)
    while asking.socket.poll(60_000):
        answer: dict[str, Any] = json.loads(asking.socket.recv())
        if answer.get("id") == number and "event" not in answer:
            assert answer["ok"], answer
            return answer
    raise TimeoutError(op)


def status(asking: Dialogue) -> dict[str, Any]:
    found: dict[str, Any] = ask(asking, "status")["status"]
    return found


def test_table_of_descriptors_is_large_from_the_start(tmp_path: Path) -> None:
    """In a process with threads, as the broker is, whatever makes it larger waits for an RCU grace period."""
    with hosted(tmp_path) as one, dialogue(one) as asking:
        status(asking)
        for pid in (one.broker, one.host):
            limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
            assert table(pid) >= min(limit, ROOM)


def table(pid: int) -> int:
    """How many descriptors *pid* may have before its table grows (proc_pid_status(5), FDSize)."""
    words = Path(f"/proc/{pid}/status").read_text().split()
    return int(words[words.index("FDSize:") + 1])


@pytest.mark.parametrize(
    ("processes", "sockets", "connections"),
    [(100, 1, 0), (1, 300, 0), (2, 1, many()), pytest.param(100, 3, many(), marks=SOAK)],
)
def test_status_and_doctor_hold_nobody_up(
    tmp_path: Path, processes: int, sockets: int, connections: int, request: pytest.FixtureRequest
) -> None:
    """Of 100 processes, of 300 sockets, of 10,000 connections."""
    with hosted(tmp_path, processes, sockets) as one, dialogue(one) as asking:
        with connected(one.ports[0], connections), responsive(one, _soak(request)):
            for _ in range(3):
                found = status(asking)
                assert ask(asking, "doctor")["findings"] is not None
        assert len(found["sockets"]) == sockets
        assert sum(holder["connections"] for holder in found["sockets"][0]["holders"]) == connections
        assert all(holder["registered"] for entry in found["sockets"] for holder in entry["holders"])


def _soak(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("soak") is not None


@pytest.mark.parametrize(
    ("kind", "connections"),
    [("epoll", many()), ("accept", 0), ("idle", 0), pytest.param("accept", many(), marks=SOAK)],
)
def test_reload_holds_nobody_up(tmp_path: Path, kind: str, connections: int, request: pytest.FixtureRequest) -> None:
    """Of a server with 10,000 connections, whose epoll has as many entries; of one that has no epoll, whose threads are
    held instead; of one of which nothing is seen, so that it is looked at for longer."""
    with hosted(tmp_path, 2, 1, kind) as one, dialogue(one) as asking:
        if kind != "idle":
            wait_until(lambda: all(e["ready"] for e in status(asking)["sockets"][0]["holders"]), 20, "they serve", 0.05)
        with connected(one.ports[0], connections), responsive(one, _soak(request)):
            answer = ask(asking, "reload", program="web", key="k")
        assert answer["result"] == "ok", answer


def test_host_that_is_stopped_holds_nobody_up_and_misses_nothing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What it is told, more than the link has room for, waits; it has the last of it once it goes on."""
    with hosted(tmp_path, kind="says") as one:
        with dialogue(one) as asking:
            status(asking)  # so that nobody has to be asked who the process is
        (pid,) = one.pids
        os.kill(one.host, signal.SIGSTOP)
        with responsive(one, _soak(request)):
            os.kill(pid, signal.SIGUSR1)
            wait_until((tmp_path / "said").exists, 60, "all is said", 0.05)
        os.kill(one.host, signal.SIGCONT)

        def last() -> bool:
            records = json.loads((tmp_path / "journal.json").read_bytes())["records"]
            return str(records.get(f"process:{pid}", {}).get("status")).startswith(f"{SAYS} ")

        wait_until(last, 20, "the host has it")
