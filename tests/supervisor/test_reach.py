"""Who may command by supervisorctl; and what is refused at the start reaches whoever asks."""

from __future__ import annotations

import grp
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator

import pytest

from sockshare.kernel import meeting
from tests.e2e.rehearsal import all_ready, assert_found_by_its_user
from tests.support.others import everybodys_python, run_as, squatted, start_as
from tests.support.supervisord import Supervisord, supervisord, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="being other users needs root")

DEPLOY, OTHER = 61234, 61235
GROUP = grp.getgrall()[-1]
SERVERS = f"[unix_http_server]\nfile = {{directory}}/s\nchmod = 0770\nchown = root:{GROUP.gr_name}\n"


@pytest.fixture(scope="module")
def stage() -> Iterator[Supervisord]:
    """One whose HTTP server lets a group in."""
    with supervisord("plain", watcher={"sockshare_ready_timeout": "10"}, servers=SERVERS) as started:
        all_ready(started)
        yield started


def ctl(stage: Supervisord, *words: str, group: bool = True) -> tuple[int, str, str]:
    groups = [GROUP.gr_gid] if group else []
    arguments = ("-c", str(stage.configuration), *words)
    done = run_as(DEPLOY, "supervisorctl", *arguments, environment=stage.environment, groups=groups)
    return done.returncode, done.stdout, done.stderr


def test_who_may_restart_may_reload_and_look(stage: Supervisord) -> None:
    """A user of the group that unix_http_server lets in: all of it, in the command's own words; nobody else."""
    code, output, _ = ctl(stage, "sockshare", "status", "--json")
    assert code == 0
    assert json.loads(output)["view"] == "all"
    assert ctl(stage, "sockshare", "doctor")[:2] == (0, stage.sockshare("doctor").stdout)
    assert ctl(stage, "sockshare", "quiesce", "wbe")[0] == 4
    before = stage.pids()
    code, output, errors = ctl(stage, "sockshare", "reload", "web", "--json")
    assert code == 0, errors
    steps = [json.loads(line)["step"] for line in output.splitlines()]
    assert steps[0] == "start"
    assert steps[-1] == "done"
    assert {"ready", "hold", "switch", "quiesce", "stop"} <= set(steps)
    assert len(steps) == len(set(steps))  # each told once, though all were told again and again
    assert stage.pids() != before
    # The same user at the broker itself is nobody.
    environment = {**stage.environment, "SOCKSHARE_ENDPOINT": str(stage.runtime)}
    done = run_as(DEPLOY, "sockshare", "reload", "web", environment=environment, groups=[GROUP.gr_gid])
    assert done.returncode == 7
    for words in (("restart", "web"), ("sockshare", "reload", "web"), ("sockshare", "status")):
        code, output, errors = ctl(stage, *words, group=False)
        assert code != 0
        assert "ermission" in output + errors


def test_interrupted_command_cancels_and_one_whose_broker_is_killed_goes_on(stage: Supervisord) -> None:
    """Exit 5 and the old process; exit 0 and a new one."""
    before = stage.pids()
    stage.deploy("v1", import_seconds=60)
    with start_as(
        0, "supervisorctl", "-c", str(stage.configuration), "sockshare", "reload", "web", environment=stage.environment
    ) as command:
        assert command.stdout is not None
        assert "start" in command.stdout.readline()
        command.send_signal(signal.SIGINT)
        output, errors = command.communicate(timeout=30)
    assert command.returncode == 5, (output, errors)
    assert "rolled_back" in output
    assert stage.pids() == before
    stage.deploy("v1", import_seconds=1)
    with start_as(
        0, "supervisorctl", "-c", str(stage.configuration), "sockshare", "reload", "web", environment=stage.environment
    ) as command:
        assert command.stdout is not None
        while ": switch" not in command.stdout.readline():  # before it, a new broker undoes the reload
            pass
        stage.kill(stage.broker())
        output = command.stdout.read()  # by its reader, which may have more than that line
    assert command.returncode == 0
    assert "done" in output
    assert stage.pids() != before


def test_stopped_broker_is_said_by_supervisorctl_too(stage: Supervisord) -> None:
    """Exit 75 and the way out, at once."""
    assert stage.ctl("stop", "sockshare-broker:*").returncode == 0
    done = stage.ctl("sockshare", "status")
    assert done.returncode == 75
    assert "broker stopped: supervisorctl start sockshare-broker" in done.stderr
    assert stat.S_IMODE((stage.runtime / "stopped").stat().st_mode) == 0o644
    assert stat.S_IMODE((stage.runtime / "journal.json").stat().st_mode) == 0o600
    assert stage.ctl("start", "sockshare-broker").returncode == 0
    wait_until(lambda: stage.ctl("sockshare", "status").returncode == 0, 10, "it answers", 0.1)


def test_refused_runtime_dir_reaches_everybody_who_asks(supervisord: Callable[..., Supervisord]) -> None:
    """Another user's, for all to write, with a link in it: exec 125, status and doctor 2, with the sentence; the file
    that the link leads to is untouched."""
    stage = supervisord("uvicorn", leave=True)
    secret = stage.directory / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    stage.runtime.mkdir()
    stage.runtime.chmod(0o777)
    (stage.runtime / "stopped").symlink_to(secret)
    os.chown(stage.runtime, OTHER, OTHER)
    stage.start()
    assert stage.process is not None
    manager = stage.process.pid
    said = f"can't use runtime directory {stage.runtime}: {stage.runtime} belongs to uid {OTHER}; choose one that root"
    wait_until(lambda: said in stage.tail(stage.stderr_log), 15, "exec says it", 0.05)
    point = meeting.find(manager)
    assert point is not None
    for command in ("status", "doctor"):
        ours = stage.sockshare(command, "--endpoint", point)
        assert ours.returncode == 2
        assert said in ours.stdout
        theirs = stage.ctl("sockshare", command)
        assert (theirs.returncode, theirs.stdout) == (2, ours.stdout)
    assert stage.ctl("sockshare", "reload", "web").returncode == 2
    wait_until(lambda: "web (exit status 125; not expected)" in stage.log.read_text(), 10, "exec exits 125", 0.05)
    assert stage.ctl("stop", "all").returncode == 0
    assert secret.read_text() == "root's"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert os.listdir(stage.runtime) == ["stopped"]


@pytest.fixture
def everybodys_interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An interpreter that all users may execute, with what is installed for ours."""
    with everybodys_python() as python:
        monkeypatch.setattr(sys, "executable", python)
        yield


def test_squatted_default_directory_does_not_matter(
    everybodys_interpreter: None, supervisord: Callable[..., Supervisord]
) -> None:
    """Of a supervisord that is not root's: its program and its user's commands find the broker."""
    stage = supervisord("uvicorn", leave=True, plugin={"runtime_dir": ""})
    with squatted(DEPLOY, OTHER):
        assert_found_by_its_user(stage, DEPLOY)
