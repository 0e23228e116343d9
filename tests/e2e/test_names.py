"""What people type after `sockshare reload`, under both managers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.support.circusd import APPS, Circusd, circusd, wait_until
from tests.support.supervisord import Supervisord, supervisord

PLAIN = f"{sys.executable} {APPS}/plain.py"
WATCHERS = f"""
[watcher:api]
cmd = {PLAIN}
copy_env = True
sockshare.sockets = web
sockshare.ready_hold = 0.1
[watcher:idle]
cmd = {PLAIN}
copy_env = True
autostart = False
sockshare.sockets = web
[watcher:crash]
cmd = /bin/false
autostart = False
sockshare.sockets = web
"""
PROGRAMS = f"""
[program:api]
command = {PLAIN}
sockshare_sockets = web
sockshare_ready_hold = 0.1
[group:site]
programs = api
[program:idle]
command = {PLAIN}
autostart = false
sockshare_sockets = web
[program:crash]
command = /bin/false
autostart = false
startretries = 1000
sockshare_sockets = web
"""


@pytest.fixture(scope="module", params=["circus", "supervisor"])
def stage(request: pytest.FixtureRequest) -> Iterator[Circusd]:
    """A manager of two programs that serve, one that is stopped, and one that ends as soon as it is started."""
    keys = {"sockshare_ready_hold" if request.param == "supervisor" else "sockshare.ready_hold": "0.1"}
    start = supervisord if request.param == "supervisor" else circusd
    with start("plain", watcher=keys, extra=PROGRAMS if request.param == "supervisor" else WATCHERS) as manager:
        wait_until(lambda: pids(manager)["api"], 20, "api runs", 0.05)
        yield manager


def pids(stage: Circusd) -> dict[str, list[int]]:
    """The processes of the two programs that serve."""
    return {"web": stage.pids("web"), "api": stage.pids("site" if isinstance(stage, Supervisord) else "api")}


def started(stage: Supervisord) -> str:
    """The state of the program that ends at once, if that is BACKOFF; it is started."""
    state = str(stage.processes("crash")["crash"]["statename"])
    if state == "STOPPED":
        stage.ctl("start", "crash")
    return state if state == "BACKOFF" else ""


def told(stage: Circusd, subject: str) -> str:
    """What `doctor` says of *subject*, or ""."""
    findings = json.loads(stage.sockshare("doctor", "--json").stdout)["findings"]
    found = [str(one["sentence"]) for one in findings if one["subject"] == subject]
    return found[-1] if found else ""


def replaced(stage: Circusd, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit status and stderr of `reload ARGUMENTS`, and the programs whose processes are others since."""
    before = pids(stage)
    done = stage.sockshare("reload", *arguments)
    now = pids(stage)
    return done.returncode, done.stderr, [name for name in before if not set(before[name]) & set(now[name])]


def refused(stage: Circusd, program: str) -> tuple[int, str, list[str]] | None:
    """As `replaced`; None if it was begun, as it is in the milliseconds for which a process of the program lives."""
    result = replaced(stage, program)
    return None if result[0] == 5 else result


def test_names_mean_what_they_mean_to_the_manager(stage: Circusd) -> None:
    """Several programs, a group, a process, all of them: each program once, in the order that was typed."""
    group = ("site:*", "site:api") if isinstance(stage, Supervisord) else ("api:*", "api:*")
    assert replaced(stage, "api", "web") == (0, "", ["web", "api"])
    holders = stage.status()["sockets"][0]["holders"]
    web = next(one["process"] for one in holders if one["program"] == "web")
    assert replaced(stage, web) == (0, "", ["web"])
    assert replaced(stage, group[0], group[1]) == (0, "", ["api"])
    for words in (("all",), ("--all",)):
        status, said, programs = replaced(stage, *words)
        assert (status, programs) == (0, ["web", "api"]), said
        assert "sockshare reload: idle is not running: left as it is" in said.splitlines()


def test_unknown_name_begins_nothing(stage: Circusd) -> None:
    """Status 4, with a suggestion for each."""
    status, said, programs = replaced(stage, "web", "aip", "wbe:*")
    assert (status, programs) == (4, [])
    assert "sockshare: can't reload 'aip': no such program; did you mean 'api'?" in said
    assert "can't reload 'wbe:*': no such program" in said


def test_status_is_that_of_the_first_which_was_not_reloaded(stage: Circusd) -> None:
    """9 for one that is stopped, and for one that ends again and again; the others are reloaded all the same."""
    status, said, programs = replaced(stage, "idle", "api")
    assert (status, programs) == (9, ["api"])
    assert "can't reload idle: it is not running" in said
    assert replaced(stage, "idle")[0] == 9
    try:
        if isinstance(stage, Supervisord):
            assert "BACKOFF" in wait_until(lambda: started(stage), 20, "crash is tried again and again", 0.05)
        else:
            stage.call("start", name="crash")
        state = "BACKOFF" if isinstance(stage, Supervisord) else "active"
        found = wait_until(lambda: told(stage, "program crash"), 10, "doctor tells of it", 0.05)
        assert state in found, found
        assert "exited with status 1" in found, found
        status, said, _ = wait_until(lambda: refused(stage, "crash"), 20, "no process of it runs", 0.0)
        assert (status, "no process of it runs just now" in said) == (9, True), said
    finally:
        if isinstance(stage, Supervisord):
            assert stage.ctl("stop", "crash").returncode == 0
        else:
            stage.call("stop", name="crash", waiting=True)


def test_reload_that_is_running_already_has_a_status_of_its_own(stage: Circusd) -> None:
    """10, and the one that runs goes on."""
    with stage.command("reload", "web") as command:
        assert command.stdout is not None
        command.stdout.readline()
        second = stage.sockshare("reload", "web")
        assert second.returncode == 10, second
        assert "running already" in second.stderr
        command.communicate(timeout=30)
        assert command.returncode == 0
