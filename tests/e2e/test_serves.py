"""*done* means: the new process was seen to serve, and nothing of the old version does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.circusd import APPS, Circusd, circusd, wait_until
from tests.support.supervisord import supervisord

NOT_SERVING, ROLLED_BACK, TIMED_OUT = 3, 5, 6
UVICORN = f"{sys.executable} -m uvicorn web:asgi --app-dir {APPS} --no-access-log --log-level warning --fd"
EXEC = f"{sys.executable} -m sockshare exec --"

Managers = Callable[..., Any]


@pytest.fixture(params=["circus", "supervisor"])
def manager(request: pytest.FixtureRequest) -> Iterator[Managers]:
    """Start a manager of that kind, with one program; *command* is the program's own."""

    def begin(command: str = "", *, watcher: dict[str, str] | None = None, **options: Any) -> Any:
        start = circusd if request.param == "circus" else supervisord
        own = {"cmd" if request.param == "circus" else "command": command} if command else {}
        return stack.enter_context(start("uvicorn", watcher={**(watcher or {}), **own}, **options))

    with ExitStack() as stack:
        yield begin


def answers(stage: Circusd, count: int = 30) -> set[str]:
    """The versions that answer *count* new connections."""
    return {stage.ask(stage.port) for _ in range(count)}


def script(stage: Circusd, *lines: str) -> Path:
    """``start.sh``, as many people have one."""
    path = stage.directory / "start.sh"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def runs(stage: Circusd) -> None:
    """Return once there is a process of the program, and a broker that knows it."""

    def is_so() -> bool:
        done = stage.sockshare("status", "--json")
        return done.returncode in (0, 3) and bool(stage.pids())

    wait_until(is_so, 20, "the program runs", 0.05)


def test_version_that_never_serves_is_not_done(manager: Managers) -> None:
    """Nor is it where the old one never did: it dies of its import, which takes longer than it is held."""
    stage = manager(leave=True, import_seconds=1.5, watcher={"sockshare.ready_timeout": "6"})
    stage.deploy("crash", "exit_at_import")
    stage.start()
    runs(stage)
    reload = stage.reload()
    print(reload)
    assert reload.status in (NOT_SERVING, ROLLED_BACK, TIMED_OUT), reload
    assert "ready" not in reload.names


def test_version_is_waited_for_where_the_old_one_imports_still(manager: Managers) -> None:
    """A healthy program that is reloaded in its first seconds is done when it serves."""
    stage = manager(leave=True, import_seconds=1.5)
    stage.start()
    runs(stage)
    stage.deploy("v2")
    reload = stage.reload()
    assert reload.status == 0, reload
    assert "registration" in [step["reason"] for step in reload.steps if step["step"] == "ready"]
    assert answers(stage) == {"v2"}


@pytest.mark.parametrize("where", ["below", "above"])
def test_nothing_of_the_old_version_answers_below_a_wrapper(manager: Managers, where: str) -> None:
    stage = manager(leave=True)
    EXEC_IN = f"{EXEC} {UVICORN} {{fd:web}}"
    if where == "below":
        path = script(stage, EXEC_IN)
        command = str(path)
    else:
        path = script(stage, f"{UVICORN} 3")
        command = f"{EXEC} {path}"
    if hasattr(stage, "sections"):
        stage.sections["program:web"]["command"] = command
        stage.configure()
    else:
        ini = stage.directory / "circus.ini"
        text = ini.read_text()
        ini.write_text(
            "\n".join(f"cmd = {command}" if line.startswith("cmd = ") else line for line in text.splitlines())
        )
    stage.up()
    if hasattr(stage, "sections"):
        stage.ctl("restart", "web")
    else:
        stage.call("restart", name="web", waiting=True)
    wait_until(lambda: stage.pids(), 10, "it runs again")
    stage.deploy("v2")
    reload = stage.reload()
    print(reload)
    print(stage.sockshare("status").stdout)
    assert reload.status == 0, reload
    assert answers(stage) == {"v2"}
