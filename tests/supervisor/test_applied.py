"""A reload applies the configuration that it began with, and is not alone: what else supervisord is told, and tells."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.rehearsal import all_ready
from tests.e2e.test_kills import reload_and
from tests.support.circusd import Reload, wait_until
from tests.support.supervisord import Supervisord, supervisord

#: An event listener (supervisor's own protocol) that writes down what it is told of processes.
LISTENER = """\
import sys
while True:
    sys.stdout.write("READY\\n")
    sys.stdout.flush()
    header = dict(one.split(":") for one in sys.stdin.readline().split())
    body = sys.stdin.read(int(header["len"]))
    with open("events", "a") as file:
        file.write(header["eventname"] + " " + body.replace("\\n", " ") + "\\n")
    sys.stdout.write("RESULT 2\\nOK")
    sys.stdout.flush()
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Supervisord]:
    """Two processes, and a listener that writes down what it hears of their states."""
    extra = "[eventlistener:heard]\ncommand = {python} listener.py\nevents = PROCESS_STATE\nstdout_logfile = NONE\n"
    with supervisord("uvicorn", numprocesses=2, extra=extra.format(python=sys.executable), leave=True) as found:
        (found.directory / "listener.py").write_text(LISTENER)
        found.up()
        all_ready(found)
        yield found


@pytest.fixture(autouse=True)
def rested(stage: Supervisord) -> None:
    """As it was: two processes, in their places."""
    stage.sections["program:web"]["numprocs"] = "2"
    stage.configure()
    stage.ctl("reread")
    stage.ctl("update")
    stage.ctl("start", "web:*")
    wait_until(lambda: sorted(stage.processes()) == ["web_0", "web_1"] and len(stage.pids()) == 2, 20, "two run", 0.1)
    all_ready(stage)


def markers(stage: Supervisord) -> set[bytes]:
    """What the processes have of the configuration's environment."""
    environments = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in stage.pids()]
    return {one for environment in environments for one in environment if one.startswith(b"MARKER=")}


def configure(stage: Supervisord, **keys: str) -> str:
    """Change the program's section, with a mark of its own; the mark."""
    marker = f"{time.monotonic()}"
    stage.sections["program:web"] |= {**keys, "environment": f'MARKER="{marker}"'}
    stage.configure()
    return marker


def during(stage: Supervisord, step: str, *arguments: str) -> Reload:
    """A reload, and `supervisorctl` *arguments* when it prints *step*."""
    return reload_and(stage, step, lambda _: stage.ctl(*arguments))


def test_numprocs_is_applied_and_update_finds_nothing_to_do(stage: Supervisord) -> None:
    """More are started, beside the others and proven; surplus ones drain; nothing is stopped afterwards."""
    for count in (3, 1):
        marker = configure(stage, numprocs=str(count))
        assert "web: changed" in stage.ctl("reread").stdout
        reload = stage.reload()
        assert reload.status == 0, reload
        names = [f"web_{number}" for number in range(count)]
        wait_until(lambda names=names: sorted(stage.processes()) == names, 10, f"there are {names}", 0.1)  # type: ignore[misc]
        pids = stage.pids()
        assert len(pids) == count
        assert markers(stage) == {f"MARKER={marker}".encode()}
        assert not stage.ctl("update").stdout.strip()
        assert stage.pids() == pids
        assert {stage.ask(stage.port) for _ in range(20)} == {"v1"}


def test_reread_in_the_middle_is_for_the_next_reload(stage: Supervisord) -> None:
    """No mixture: all processes have what the reload began with."""
    before = configure(stage)
    stage.ctl("reread")
    after = ""

    def change(_: object) -> None:
        nonlocal after
        after = configure(stage)
        assert "web: changed" in stage.ctl("reread").stdout

    reload = reload_and(stage, "ready", change)
    assert reload.status == 0, reload
    assert markers(stage) == {f"MARKER={before}".encode()}
    assert stage.reload().status == 0
    assert markers(stage) == {f"MARKER={after}".encode()}


def test_process_that_crashed_has_its_configuration_again_after_a_rollback(stage: Supervisord) -> None:
    """It was started anew with that of the reload, which is broken: it would crash for ever."""
    good = stage.sections["program:web"]["command"]
    marker = configure(stage)
    stage.ctl("reread")
    assert stage.reload().status == 0
    younger = max(stage.processes().items(), key=lambda item: item[1]["start"])[0]
    pid = stage.processes()[younger]["pid"]
    configure(stage, command="/bin/sh -c 'sleep 1; exit 1'")
    stage.ctl("reread")
    try:
        reload = reload_and(stage, "start", lambda _: stage.kill(pid))
        assert reload.status == 5, reload
        wait_until(
            lambda: (
                {one["statename"] for one in stage.processes().values()} == {"RUNNING"}
                and len(stage.pids()) == 2
                and markers(stage) == {f"MARKER={marker}".encode()}
            ),
            15,
            "two run, as before",
            0.1,
        )
        assert stage.processes()[younger]["pid"] != pid
    finally:
        stage.sections["program:web"]["command"] = good


def test_process_that_was_stopped_stays_stopped_and_is_not_blamed(stage: Supervisord) -> None:
    """`stop web:web_0`, when it is being replaced: the other one is replaced, and the last line says what happened."""
    older = min(stage.processes().items(), key=lambda item: item[1]["start"])[0]
    reload = during(stage, "start", "stop", f"web:{older}")
    assert reload.status == 0, reload
    assert "was stopped by its manager meanwhile" in reload.steps[-1]["reason"], reload
    assert "failed" not in reload.names
    wait_until(lambda: len(stage.processes()) == 2, 10, "all are in their places", 0.1)
    assert stage.processes()[older]["statename"] == "STOPPED"


def test_process_that_was_restarted_runs_once(stage: Supervisord) -> None:
    """As httpok and memmon do it: the restart is done, and not undone by the reload."""
    older = min(stage.processes().items(), key=lambda item: item[1]["start"])[0]
    before = stage.pids()
    reload = during(stage, "start", "restart", f"web:{older}")
    assert reload.status == 0, reload
    assert "failed" not in reload.names
    wait_until(lambda: sorted(stage.processes()) == ["web_0", "web_1"], 10, "all are in their places", 0.1)
    assert len(stage.pids()) == 2
    assert not set(stage.pids()) & set(before)


@pytest.mark.parametrize("step", ["start", "switch"])
def test_stop_of_all_is_the_reason_that_is_given(stage: Supervisord, step: str) -> None:
    """Not the new version's death, which was supervisord's doing."""
    reload = during(stage, step, "stop", "web:*")
    assert reload.status == 3, reload
    assert reload.reason == "web was stopped meanwhile", reload
    wait_until(lambda: not stage.pids() and len(stage.processes()) == 2, 10, "nothing runs", 0.1)


def test_orderly_retirement_is_no_crash_to_event_listeners(stage: Supervisord) -> None:
    """What crashmail, httpok, memmon and their like listen to: nothing has exited, nothing is fatal."""
    heard = stage.directory / "events"
    heard.write_text("")
    reload = stage.reload()
    assert reload.status == 0, reload
    wait_until(lambda: heard.read_text().count("STATE_STOPPED ") == 2, 10, "both old ones are heard to stop", 0.1)
    names = [line.split()[0] for line in heard.read_text().splitlines()]
    assert set(names) <= {f"PROCESS_STATE_{state}" for state in ("STARTING", "RUNNING", "STOPPING", "STOPPED")}, (
        heard.read_text()
    )


def test_new_process_that_is_given_up_is_not_fatal_to_event_listeners(stage: Supervisord) -> None:
    """What fatalmailbatch and crashmailbatch mail: one that somebody stops has not exited; one that fails has backed
    off, and is gone before supervisord gives it up."""
    heard = stage.directory / "events"
    heard.write_text("")
    older = min(stage.processes().items(), key=lambda item: item[1]["start"])[0]
    during(stage, "start", "stop", f"web:{older}")
    wait_until(lambda: sorted(stage.processes()) == ["web_0", "web_1"], 10, "all are in their places", 0.1)
    assert stage.ctl("start", f"web:{older}").returncode == 0
    all_ready(stage)
    orderly = {f"PROCESS_STATE_{state}" for state in ("STARTING", "RUNNING", "STOPPING", "STOPPED")}
    wait_until(lambda: heard.read_text().count("STATE_STOPPED ") >= 3, 10, "what was stopped is heard of", 0.1)
    assert {line.split()[0] for line in heard.read_text().splitlines()} <= orderly, heard.read_text()
    heard.write_text("")
    stage.deploy("bad", "exit_at_import")
    assert stage.reload().status == 5
    stage.deploy("v1")
    assert stage.reload().status == 0  # so that whatever there is to be heard of the one before has been heard
    wait_until(lambda: heard.read_text().count("STATE_STOPPED ") >= 2, 10, "both old ones are heard to stop", 0.1)
    names = {line.split()[0] for line in heard.read_text().splitlines()}
    assert names <= {*orderly, "PROCESS_STATE_BACKOFF"}, heard.read_text()
