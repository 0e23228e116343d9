"""Where the broker has no rights over the programs, which are another user's, or hide: it says so, and what needs no
rights holds."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.registration.scenes import Scene, in_line, staged
from tests.support.circusd import Circusd, wait_until
from tests.support.oracle import Oracle, look, roots
from tests.support.others import everybodys_python
from tests.support.supervisord import Supervisord

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="starts programs of another user")

NOBODY = "65534"
_PR_CAPBSET_DROP, _CAP_SYS_PTRACE = 24, 19


def without_ptrace(start: Callable[[], None]) -> None:
    """Have *start* start its process without CAP_SYS_PTRACE: each thread has a bounding set of its own (prctl(2))."""
    refused: list[int] = []

    def dropped() -> None:
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_CAPBSET_DROP, _CAP_SYS_PTRACE, 0, 0, 0):
            refused.append(ctypes.get_errno())
        else:
            start()

    thread = threading.Thread(target=dropped)
    thread.start()
    thread.join()
    assert not refused, f"can't drop CAP_SYS_PTRACE: {os.strerror(refused[0])}"


@contextmanager
def unprivileged(
    monkeypatch: pytest.MonkeyPatch, manager: str, program: str, *, becomes: bool = True, **options: Any
) -> Iterator[Scene]:
    """A stage whose broker may not look into its programs, which run as nobody, or hide."""
    stages: type[Circusd] = Circusd if manager == "circus" else Supervisord
    begin = stages.start

    def start(self: Circusd) -> None:
        if not becomes:
            self.directory.chmod(0o777)  # it writes down there what it takes
        without_ptrace(lambda: begin(self))

    if becomes:
        monkeypatch.setenv("TAKING_UID", NOBODY)
    monkeypatch.setattr(stages, "start", start)
    with staged(manager, program, processes=3, **options) as stage:
        wait_until(lambda: stage.sockshare("status").returncode in (0, 3), 20, "the broker answers", 0.1)
        yield Scene(stage)


def facts(scene: Scene) -> list[dict[str, Any]]:
    """What `status` says of the processes."""
    holders: list[dict[str, Any]] = scene.facts()["holders"]
    return holders


@pytest.mark.parametrize("manager", ["circus", "supervisor"])
@pytest.mark.parametrize("by", ["itself", "its section"])
def test_degraded_mode_is_announced(monkeypatch: pytest.MonkeyPatch, manager: str, by: str) -> None:
    """In `status`, for each process, with the reason; and in the log. It is nobody's by what it does, or by `uid`."""
    directory = ExitStack()
    options: dict[str, Any] = {}
    if by == "its section":
        monkeypatch.setattr(sys, "executable", directory.enter_context(everybodys_python()))
        options = {"watcher": {"uid" if manager == "circus" else "user": "nobody"}}
    with (
        directory,
        unprivileged(monkeypatch, manager, "taking", becomes=by == "itself", waiting=False, options=options) as scene,
    ):
        wait_until(lambda: len(look(scene.stage.pids(), scene.inode)[1]) == 3, 20, "all are registered", 0.05)
        wait_until(lambda: all(one["not_kept"] for one in facts(scene)), 10, "it is said", 0.1)
        for one in facts(scene):
            assert one["kept_by"] is None
            assert f"it runs as uid {NOBODY}" in one["not_kept"] or "may not be looked into" in one["not_kept"]
        wait_until(lambda: scene.log().count("degraded: ") >= 3, 10, "the log says it")
        assert set(scene.tally(10)) <= set(scene.stage.pids())  # they serve, all of them
        for one in facts(scene):  # and nothing says that they do not
            assert (one["ready"], one["registered"], one["suspended"]) == (None, None, None)
            assert "Permission denied" in one["unseen"]
        assert scene.facts()["state"] is None
        status, doctor = scene.stage.sockshare("status"), scene.stage.sockshare("doctor")
        assert (status.returncode, status.stderr) == (0, ""), status
        assert re.search(r"^web:(web_)?\d+ .* web +\d+ +\? +\?", status.stdout, re.MULTILINE), status.stdout
        assert "can't see whether it is served" in doctor.stdout
        assert "not ready" not in doctor.stdout
        assert "nor waits" not in doctor.stdout


def test_one_runs_at_a_time_behind_exec_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait, and are not started; the holder dies: one of them is. No rights are needed for that."""
    with unprivileged(monkeypatch, "circus", "standby") as scene:
        manager = scene.stage.process
        assert manager is not None
        with Oracle(scene.inode, manager.pid) as oracle:
            for _ in range(3):
                wait_until(lambda: len(in_line(scene.stage)) == 3, 15, "all are in line")
                holder = scene.holder()
                assert look(roots(manager.pid), scene.inode)[0] == [holder]
                assert {one["kept_by"] for one in facts(scene)} == {"cooperate"}
                assert scene.tally(5) == {holder: 5}
                scene.signal(holder, signal.SIGKILL)
                assert scene.ask() != holder
            watch = oracle.stop()
        assert watch.several() == []


def test_gates_need_no_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that use the library: one holds, is followed when it dies or hangs, and never are there two."""
    with unprivileged(monkeypatch, "circus", "gated") as scene:
        manager = scene.stage.process
        assert manager is not None
        with Oracle(scene.inode, manager.pid) as oracle:
            holder = scene.holder()
            assert {one["kept_by"] for one in facts(scene)} == {"gate"}
            assert "degraded" not in scene.log()
            scene.signal(holder, signal.SIGSTOP)
            try:
                follower = scene.ask()
                assert follower != holder
            finally:
                scene.stage.kill(holder, signal.SIGCONT)
            scene.signal(follower, signal.SIGKILL)
            assert scene.ask() != follower
            watch = oracle.stop()
        assert watch.several() == []
