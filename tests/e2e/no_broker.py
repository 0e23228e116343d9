"""Run by `test_no_broker.py`, in namespaces of its own: /proc has these processes only, and /run is empty."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.circusd import Circusd, circusd, wait_until
from tests.support.others import everybodys_python, run_as
from tests.support.supervisord import supervisord

USER, OTHER = 54321, 54322
NO_BROKER, NOT_PERMITTED = 75, 7

Manager = Callable[..., AbstractContextManager[Circusd]]
both = pytest.mark.parametrize("manager", [circusd, supervisord], ids=["circus", "supervisor"])


def say(stage: Circusd, *words: str, uid: int = 0) -> tuple[int, str]:
    """A command's exit status and all that it says."""
    done = run_as(uid, "sockshare", *words, environment=stage.environment)
    return done.returncode, done.stdout + done.stderr


def title(stage: Circusd, uid: int = 0) -> str:
    """How a manager is named."""
    assert stage.process is not None
    name, file = ("circusd", "circus.ini") if type(stage) is Circusd else ("supervisord", "supervisord.conf")
    return f"{name} (pid {stage.process.pid}, uid {uid}, {stage.directory}/{file})"


def is_ready(stage: Circusd) -> bool:
    return stage.sockshare("status").returncode == 0


@both
def test_command_is_told_of_each_manager(manager: Manager) -> None:
    """Of two, what each is and how it is reached; the only one is taken; of one that was killed, what it has left,
    and how that is ended. Another user, who may not list root's brokers, is told where that is, and there why not."""
    with manager("abrupt") as one:
        with manager("abrupt") as other:
            status, said = say(one, "status")
            assert status == NO_BROKER
            assert "can't choose a broker: 2 run here; use --endpoint DIR" in said
            for stage in (one, other):
                wait_until(lambda stage=stage: is_ready(stage), 15, "all is ready", 0.05)  # type: ignore[misc]
                (endpoint,) = re.findall(rf"{re.escape(title(stage))}: --endpoint (\S+)", said)
                status, its = say(one, "--endpoint", endpoint, "status", "--json")
                assert (status, json.loads(its)["manager"]["pid"]) == (0, stage.process and stage.process.pid)
        assert say(one, "status")[0] == 0
        status, said = say(one, "status", uid=OTHER)
        assert status == NO_BROKER
        (endpoint,) = re.findall(rf"{re.escape(title(one))}: its broker answers; say --endpoint (\S+)", said)
        status, said = say(one, "--endpoint", endpoint, "status", uid=OTHER)
        assert (status, f"no program of it runs under uid {OTHER}" in said) == (NOT_PERMITTED, True)

        pids = one.pids()
        assert one.process is not None
        one.process.kill()
        one.process.wait()
        wait_until(lambda: set(one.family()) == set(pids), 10, "host and broker have ended", 0.05)
        for command, expected in (("status", NO_BROKER), ("doctor", NO_BROKER)):
            status, said = say(one, command)
            assert status == expected
            assert f"a manager that has ended: {len(pids)} of its processes run on: pid {pids[0]} (" in said
        (kill,) = re.findall(r"`(kill [\d ]+)`", said)
        assert set(kill.split()[1:]) == set(map(str, pids))
        subprocess.run(kill, shell=True, check=True)
        wait_until(lambda: not one.family(), 10, "they have ended", 0.05)
        status, said = say(one, "status")
        assert (status, "no circusd and no supervisord runs here" in said) == (NO_BROKER, True)


@both
def test_manager_of_another_user_is_named(monkeypatch: pytest.MonkeyPatch, manager: Manager) -> None:
    """Root is told how it is reached; another user whom to be; its own user finds it."""
    own = Path(f"/run/user/{USER}")
    own.mkdir(0o700, parents=True, exist_ok=True)
    os.chown(own, USER, USER)
    with everybodys_python() as python:
        monkeypatch.setattr(sys, "executable", python)
        with manager("abrupt", leave=True) as stage:
            stage.start_as(USER)
            stage.wait_for_answer(stage.port)
            wait_until(lambda: is_ready(stage), 15, "all is ready", 0.05)
            whose = f"{title(stage, USER)}: it is another user's"
            status, said = say(stage, "status")
            assert status == NO_BROKER
            (endpoint,) = re.findall(rf"{re.escape(whose)}; say --endpoint (\S+)", said)
            assert say(stage, "--endpoint", endpoint, "status")[0] == 0
            status, said = say(stage, "status", uid=OTHER)
            assert status == NO_BROKER
            assert f"{whose}; run the command as that user, or as root" in said
            assert say(stage, "status", uid=USER)[0] == 0
