"""A reload to a broken version, whatever the program was before: what its exit status, ``status`` and ``doctor`` say is
what one sees who connects.

``pytest -n 0 -m soak tests/e2e/test_verdicts.py`` does it 200 times.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pytest

from sockshare.core.errors import ExitStatus
from sockshare.kernel import epoll
from tests.e2e.rehearsal import all_ready
from tests.support.circusd import PROGRAMS, Circusd, Reload, circusd, wait_until
from tests.support.supervisord import Supervisord, supervisord

FAULTS = (
    "exit_at_import",
    "exit_zero",
    "killed",
    "closed",
    "hang_at_import",
    "never_register",
    "ready_then_exit",
    "ready_then_hang",
    "exit_after_ready",
    "elsewhere",
)
BEFORE = ("healthy", "crash-looping", "importing", "stopped", "orphaned")
MANAGERS: dict[str, Callable[..., AbstractContextManager[Circusd]]] = {"circus": circusd, "supervisor": supervisord}
#: Seconds that a client waits for its answer.
PATIENCE = 1.0
CLIENTS = 8
#: Seconds in which what is said comes to be so: a connection has to wait for 5 before nobody is said to accept it.
SETTLES = 12.0
#: The one that serves for a moment each time that it is started.
FLAPS = "exit_after_ready"
#: What it may exit with where no version before serves, or not yet; else it is rolled back, or has timed out.
STATUSES = {
    "stopped": {ExitStatus.NOT_RUNNING},
    "crash-looping": {ExitStatus.NOT_SERVING, ExitStatus.TIMED_OUT, ExitStatus.NOT_RUNNING},  # by what it is at
    "importing": {ExitStatus.NOT_SERVING, ExitStatus.ROLLED_BACK, ExitStatus.TIMED_OUT},  # by what it has come to
}
#: Where nobody is served, before and after.
NOTHING_BEFORE = ("stopped", "crash-looping")


class Seen(NamedTuple):
    """What clients saw before and after the commands, and what those said."""

    before: frozenset[str]  # the versions that answered; "": nobody did
    after: frozenset[str]
    status: int
    state: str | None
    doctor: int
    said: str

    def trouble(self, has_leftovers: bool) -> str:
        """What does not agree; of processes that are left over and serve besides `doctor` says that they do."""
        if self.before != self.after:
            return "what clients see changes"
        serves = "" not in self.before
        if (self.state == "ok") != serves:
            return f"the socket is called {self.state}"
        if (self.status == 0) != serves:
            return f"status exits {self.status}"
        if (self.doctor == 0) != (serves and not has_leftovers):
            return f"doctor exits {self.doctor}"
        if has_leftovers and "is left over, and serves" not in self.said:
            return "doctor does not name what is left over"
        return ""


def _case(number: int) -> Any:
    fault, before = FAULTS[number % 10], BEFORE[number // 10 % 5]
    manager, count = list(MANAGERS)[number // 50 % 2], number // 100 + 1
    state, other = number // 10 % 5, number // 50 % 2
    is_short = count == 1 and number % 10 == state * 2 + other and state % 2 == other  # of each state one
    marks = () if is_short else (pytest.mark.soak,)
    return pytest.param(manager, before, fault, count, id=f"{manager}-{before}-{fault}-{count}", marks=marks)


def _answer(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.settimeout(PATIENCE)
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        return str(json.loads(answer.partition(b"\r\n\r\n")[2])["version"])
    except (OSError, ValueError):
        return ""


def _clients(stage: Circusd) -> frozenset[str]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        return frozenset(pool.map(_answer, [stage.port] * CLIENTS))


def _look(stage: Circusd) -> Seen:
    before = _clients(stage)
    status, doctor = stage.sockshare("status", "--json"), stage.sockshare("doctor")
    after = _clients(stage)
    state = json.loads(status.stdout)["sockets"][0]["state"]
    said = f"{status.stdout}{status.stderr}{doctor.stdout}{doctor.stderr}"
    return Seen(before, after, status.returncode, state, doctor.returncode, said)


def _agreed(stage: Circusd, reload: Reload, *, has_leftovers: bool) -> Seen:
    """What is seen when all agree."""
    deadline = time.monotonic() + SETTLES
    while True:
        seen = _look(stage)
        trouble = seen.trouble(has_leftovers)
        if not trouble:
            return seen
        assert time.monotonic() < deadline, f"{trouble}; clients see {set(seen.before)}\n{seen.said}\n{reload}"


def _crashes(stage: Circusd) -> bool:
    """Whether `doctor` says that the program crashes again and again."""
    doctor = stage.sockshare("doctor")
    return doctor.returncode == ExitStatus.NOT_SERVING and "times within a minute" in doctor.stdout


def _workers(stage: Circusd) -> int:
    inode = stage.status()["sockets"][0]["inode"]
    return sum(len(epoll.registrations(pid, [inode])) for pid in stage.pids())


def _begin(stage: Circusd, before: str, count: int) -> None:
    """Have the program be as *before* says."""
    if before == "crash-looping":
        stage.deploy("v0", "exit_at_import")
    elif before == "importing":
        stage.deploy("v1", import_seconds=2.0)
    stage.start()
    if before in ("crash-looping", "importing"):
        wait_until(lambda: stage.sockshare("status").returncode in (0, 3) and stage.pids(), 20, "it runs", 0.05)
        if before == "importing":
            wait_until(lambda: len([*stage.directory.glob("importing-v1-*")]) == count, 20, "it is loading")
        return
    stage.wait_for_answer(stage.port)
    all_ready(stage)
    if before == "stopped":
        if isinstance(stage, Supervisord):
            stage.ctl("stop", "web:*")
        else:
            stage.call("stop", name="web", waiting=True)
        wait_until(lambda: not stage.pids(), 10, "it is stopped")
    elif before == "orphaned":
        wait_until(lambda: _workers(stage) == count * 2, 20, "its workers serve", 0.05)
        masters = stage.pids()
        for master in masters:
            assert stage.kill(master)
        wait_until(lambda: len(stage.pids()) == count and not set(stage.pids()) & set(masters), 20, "it runs anew")
        # What is deployed from now on, none of them loads.
        wait_until(lambda: _workers(stage) == count * 2, 20, "its workers serve", 0.05)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("manager", "before", "fault", "count"), [_case(number) for number in range(200)])
def test_what_is_said_of_a_broken_version_is_what_clients_see(
    manager: str, before: str, fault: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never called done; and where something serves afterwards it is the version before, wholly."""
    if before == "orphaned":
        monkeypatch.setitem(PROGRAMS, "uvicorn", f"{PROGRAMS['uvicorn']} --workers 2")
    watcher = {"sockshare.ready_timeout": "4"}
    with MANAGERS[manager]("uvicorn", numprocesses=count, watcher=watcher, leave=True) as stage:
        _begin(stage, before, count)
        stage.deploy("broken", fault)
        reload = stage.reload()
        assert reload.status in STATUSES.get(before, {ExitStatus.ROLLED_BACK, ExitStatus.TIMED_OUT}), reload
        assert "done" not in reload.names, reload
        if before == "importing":
            wait_until(lambda: _clients(stage) == {"v1"}, 20, "the one before serves", 0.1)
        if before == "crash-looping" and fault == FLAPS:
            # Whether it serves changes twice a second; that it crashes does not.
            wait_until(lambda: _crashes(stage), SETTLES, f"doctor tells of its crashes: {_look(stage).said}")
            return
        seen = _agreed(stage, reload, has_leftovers=before == "orphaned")
        assert seen.before == ({""} if before in NOTHING_BEFORE else {"v1"}), f"{reload}\n{seen}"
        assert "Traceback (most recent" not in reload.stderr, reload


@pytest.mark.parametrize("manager", MANAGERS)
def test_rollback_to_a_version_that_serves_nobody_is_not_called_one(manager: str) -> None:
    """It lives, and that is all: 5 would say that it serves."""
    with MANAGERS[manager]("uvicorn", leave=True) as stage:
        stage.deploy("v0", import_seconds=100.0)
        stage.start()
        wait_until(lambda: [*stage.directory.glob("importing-v0-*")], 20, "it is loading")
        wait_until(lambda: stage.sockshare("status").returncode == 3, 20, "there is a broker", 0.05)
        (old,) = stage.pids()
        stage.deploy("broken", "exit_at_import", import_seconds=0.0)
        reload = stage.reload()
        assert reload.status == ExitStatus.NOT_SERVING, reload
        assert re.search(rf"web\S* \(pid {old}\), which stays, is not seen to serve web$", reload.reason), reload
        assert "rolled_back" not in reload.names
        assert stage.pids() == [old]
