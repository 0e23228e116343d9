"""Who may command under circus; and what is refused at the start reaches whoever asks."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sockshare.cli.stage import wait_until
from sockshare.kernel import meeting
from tests.e2e.rehearsal import assert_found_by_its_user
from tests.support.circusd import Circusd, behind_exec, command_of
from tests.support.others import run_as, squatted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="being other users needs root")

Circusds = Callable[..., Circusd]
DEPLOY, OTHER, GROUP = 61244, 61245, 61246


def test_who_may_write_to_circusd_s_endpoint_may_reload(circusd: Circusds) -> None:
    """Its owner (endpoint_owner) and its group; another user is told so. The program's user sees what is its own."""
    stage = circusd("plain")
    endpoint = stage.directory / "c"
    environment = {**stage.environment, "SOCKSHARE_ENDPOINT": str(stage.runtime)}
    done = run_as(OTHER, "sockshare", "status", environment=environment)
    assert done.returncode == 7
    assert f"no program of it runs under uid {OTHER}" in done.stderr
    os.chown(endpoint, DEPLOY, GROUP)  # as endpoint_owner does
    before = stage.pids()
    done = run_as(DEPLOY, "sockshare", "reload", "web", environment=environment)
    assert done.returncode == 0, done.stderr
    assert stage.pids() != before
    endpoint.chmod(0o775)
    done = run_as(OTHER, "sockshare", "status", "--json", environment=environment, groups=[GROUP])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["view"] == "all"
    done = run_as(OTHER, "sockshare", "reload", "web", environment=environment)
    assert done.returncode == 7
    assert f"who may write to circusd's endpoint {endpoint}" in done.stderr


def test_refused_runtime_dir_reaches_everybody_who_asks(circusd: Circusds) -> None:
    """Another user's, for all to write, with links in it: exec 125, status and doctor 2, with the sentence, and nothing
    behind the links is touched. The log, in the default directory then, is not for everybody."""
    stage = circusd("uvicorn", leave=True, plugin={"logfile": ""})
    secret = stage.directory / "secret"
    secret.write_text("root's")
    stage.runtime.mkdir()
    stage.runtime.chmod(0o777)
    for name in ("sockshare.log", "stopped", "journal.json~"):
        (stage.runtime / name).symlink_to(secret)
    os.chown(stage.runtime, OTHER, OTHER)
    stage.start()
    assert stage.process is not None
    said = f"can't use runtime directory {stage.runtime}: {stage.runtime} belongs to uid {OTHER}; choose one that root"
    wait_until(lambda: said in stage.tail(stage.stderr_log), 15, "exec says it", 0.05)
    point = meeting.find(stage.process.pid)
    assert point is not None
    for command in ("status", "doctor"):
        done = stage.sockshare(command, "--endpoint", point)
        assert done.returncode == 2
        assert said in done.stdout
    assert stat.S_IMODE(Path(point, "sockshare.log").stat().st_mode) == 0o640
    assert secret.read_text() == "root's"
    assert len(os.listdir(stage.runtime)) == 3


def test_squatted_default_directory_does_not_matter(circusd: Circusds) -> None:
    """Of a circusd that is not root's: its program and its user's commands find the broker."""
    # By env: access(2), which exec asks whether it may execute the interpreter, knows nothing of `BECOME`'s capability.
    command = behind_exec("uvicorn", f"/usr/bin/env {command_of('uvicorn')}")
    stage = circusd("uvicorn", leave=True, watcher={"cmd": command})
    with squatted(DEPLOY, OTHER):
        assert_found_by_its_user(stage, DEPLOY)
