"""`supervisorctl sockshare`, the XML-RPC methods, and what a stopped broker leaves to say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.rehearsal import all_ready
from tests.support.supervisord import BROKER, OURS, Supervisord, supervisord, wait_until


@pytest.fixture(scope="module")
def stage() -> Iterator[Supervisord]:
    """One process of a good version."""
    with supervisord("plain", watcher={"sockshare_ready_timeout": "10"}) as started:
        all_ready(started)
        yield started


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("status", "--json"),
        ("doctor",),
        ("registration", "move", "web", "wbe"),
        ("quiesce", "wbe"),
        ("wake", "wbe"),
        ("reload", "web", "--dry-run"),
        ("reload", "wbe"),
        ("reload", "web", "wbe:*"),
        ("reload", "web", "--all"),
        ("reload", "web", "--timeout", "x"),
        ("reload",),
    ],
)
def test_same_words_and_status_as_the_command_itself(stage: Supervisord, arguments: tuple[str, ...]) -> None:
    """supervisorctl prints and exits as `sockshare` does."""
    wait_until(lambda: {one["state"] for one in stage.status()["programs"]} == {"RUNNING"}, 10, "no state is to change")
    theirs, ours = stage.ctl("sockshare", *arguments), stage.sockshare(*arguments)
    assert theirs.returncode == ours.returncode
    if "--json" not in arguments:  # it has times, and a count of refusals
        assert theirs.stdout == ours.stdout
        assert theirs.stderr.splitlines()[-1:] == ours.stderr.splitlines()[-1:]


def test_doctor_names_the_program_that_does_not_take_its_socket(stage: Supervisord) -> None:
    """Without `exec` nothing comes to a program: exit 3, its process, and what to do; all is well without it."""
    done = stage.ctl("sockshare", "doctor")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all is well"), done
    stage.sections["program:idle"] = {"command": "/bin/sleep 1000", "sockshare_sockets": "web"}
    stage.configure()
    assert stage.ctl("update").returncode == 0
    wait_until(lambda: stage.pids("idle"), 10, "it runs")
    done = stage.sockshare("doctor", "--json")
    assert done.returncode == 3, done
    problems = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "problem"]
    assert [one["subject"] for one in problems] == [f"idle (pid {stage.pids('idle')[0]})"]
    assert "let the command in [program:idle] begin with `sockshare exec --`" in problems[0]["sentence"]
    del stage.sections["program:idle"]
    stage.configure()
    assert stage.ctl("update").returncode == 0


def test_reload_by_supervisorctl_replaces_or_rolls_back(stage: Supervisord) -> None:
    """Exit 0 and another pid for a good version, 5 and the same for one that crashes."""
    before = stage.pids()
    assert stage.ctl("sockshare", "reload", "web").returncode == 0
    now = stage.pids()
    assert len(now) == 1
    assert now != before
    command = stage.sections["program:web"]["command"]
    stage.sections["program:web"]["command"] = f"{sys.executable} -c 'raise SystemExit(3)'"
    stage.configure()
    assert stage.ctl("reread").returncode == 0
    done = stage.ctl("sockshare", "reload", "web")
    assert done.returncode == 5, done
    assert stage.pids() == now
    stage.sections["program:web"]["command"] = command
    stage.configure()
    assert stage.ctl("reread").returncode == 0


def test_unknown_words_are_refused(stage: Supervisord) -> None:
    """A misspelt command is a usage error with a suggestion; without one there is help."""
    done = stage.ctl("sockshare", "relaod", "web")
    assert done.returncode == 2
    assert "did you mean 'reload'?" in done.stdout
    assert "reload <program>" in stage.ctl("sockshare").stdout
    assert "reload <program>" in stage.ctl("help", "sockshare").stdout


def test_section_that_supervisorctl_does_not_read_is_named(stage: Supervisord, tmp_path: Path) -> None:
    """Missing, or in an included file, it is a warning of `status`, `doctor` and the log, until it is where it should
    be; what the warning says to do works."""
    head, extra = stage.head, stage.extra
    try:
        included = tmp_path / "ours.conf"
        for where, words in (
            ("", "there is no [ctlplugin:sockshare]"),
            (OURS, f"[ctlplugin:sockshare] is in {included}"),
        ):
            included.write_text(where)
            stage.head, stage.extra = head.replace(OURS, ""), f"[include]\nfiles = {included}\n"
            stage.configure()
            assert "Unknown syntax" in stage.ctl("sockshare", "status").stdout
            assert stage.ctl("reread").returncode == 0
            done = stage.sockshare("doctor")
            assert done.returncode == 3
            assert words in done.stdout
            assert words in stage.sockshare("status").stdout
            assert words in stage.log.read_text()
    finally:
        stage.head, stage.extra = head, extra
        stage.configure()
    assert stage.ctl("reread").returncode == 0
    assert stage.ctl("sockshare", "doctor").stdout.splitlines()[-1] == "all is well"


def test_reload_is_started_and_polled_by_xml_rpc(stage: Supervisord) -> None:
    """The methods answer at once, and in the end tell what the command would have."""
    assert json.loads(stage.rpc("sockshare.status"))["manager"]["kind"] == "supervisor"
    before = stage.pids()
    key = stage.rpc("sockshare.startReload", "web")
    states = []

    def ended() -> bool:
        states.append(stage.rpc("sockshare.reloadStatus", "web", key))
        return bool(states[-1]["state"] == "ended")

    wait_until(ended, 20, "the reload has ended", 0.05)
    assert states[0]["state"] == "running"
    assert (states[-1]["result"], states[-1]["exit"]) == ("ok", 0)
    assert stage.pids() != before
    with pytest.raises(Exception, match="no such program"):
        stage.rpc("sockshare.startReload", "wbe")
    with pytest.raises(Exception, match="BAD_NAME"):
        stage.rpc("sockshare.reloadStatus", "web", "other")
    assert "startReload" in " ".join(stage.rpc("system.listMethods"))
    assert stage.rpc("system.methodHelp", "sockshare.startReload")


def test_command_says_how_to_start_a_stopped_broker(stage: Supervisord) -> None:
    """`stop all` stops it too; a command then fails at once, with the way out, which works."""
    assert stage.ctl("stop", "all").returncode == 0
    assert not stage.pids(BROKER)
    began = time.monotonic()
    done = stage.sockshare("status")
    assert done.returncode == 75
    assert f"broker stopped: supervisorctl start {BROKER}" in done.stderr
    assert time.monotonic() - began < 3
    assert stage.ctl("start", BROKER).returncode == 0
    wait_until(lambda: stage.sockshare("status").returncode in (0, 3), 10, "it answers", 0.1)
    assert stage.ctl("start", "all").returncode == 0
    all_ready(stage)
    wait_until(lambda: len(stage.pids(BROKER)) == 2, 5, "the spare is back", 0.05)


def test_link_takes_nobody_but_the_broker(stage: Supervisord) -> None:
    """A process of the same user that connects to the link is dropped at once, and the broker serves on."""
    path = str(stage.runtime / "link")
    script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); print(s.recv(9))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=10, check=True)
    assert done.stdout == "b''\n"
    assert stage.sockshare("status").returncode == 0
