"""Every mistake gets one sentence and its exit status, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.circusd import Circusd, wait_until

Circusds = Callable[..., Circusd]
Done = subprocess.CompletedProcess[str]
USAGE, UNKNOWN_NAME, NO_BROKER, REFUSED = 2, 4, 75, 125


def assert_said(done: Done, status: int, *words: str) -> str:
    """The exit status, and the words in what was printed; no traceback. Returns what was printed."""
    said = done.stdout + done.stderr
    assert done.returncode == status, f"exit {done.returncode}: {said}"
    assert "Traceback" not in said, said
    missing = [word for word in words if word not in said]
    assert not missing, f"{missing} not in: {said}"
    return said


def refused(stage: Circusd) -> Done:
    """What ``status`` says once the broker of a wrong configuration is up."""
    stage.start()

    def ask() -> Done | None:
        done = stage.sockshare("status", timeout=20)
        return None if done.returncode == NO_BROKER else done

    done: Done = wait_until(ask, 20, "the broker answers", 0.1)
    return done


def test_program_is_suggested_when_its_name_is_unknown(circusd: Circusds) -> None:
    """``reload`` of a misspelt program, or of one that is not ours, changes nothing and exits 4."""
    stage = circusd("uvicorn")
    pids = stage.pids()
    assert_said(stage.sockshare("reload", "wbe"), UNKNOWN_NAME, "can't reload", "wbe", "did you mean", "web")
    assert stage.reload(program="nonsense").status == UNKNOWN_NAME
    assert stage.pids() == pids
    assert_said(stage.sockshare("doctor"), 0, "all is well")
    planned = stage.reload("--dry-run")
    assert planned.status == 0, planned
    assert stage.pids() == pids
    for arguments in (("reload",), ("relaod", "web"), ("reload", "web", "--timeout", "soon"), ("status", "--jsn")):
        assert_said(stage.sockshare(*arguments), USAGE)


def test_every_mistake_is_told_when_configuration_is_wrong(circusd: Circusds) -> None:
    """State *refused*: status has them all and exits 2, a program's exec exits 125, the log file has them too."""
    stage = circusd(
        "uvicorn",
        leave=True,
        plugin={"web.registratoin": "exclusive"},
        watcher={"sockshare.sockets": "wbe", "sockshare.raedy": "auto", "sockshare.ready_timeout": "-1"},
    )
    words = ("wbe", "did you mean", "raedy", "ready_timeout", "registratoin", "watcher:web")
    assert_said(refused(stage), USAGE, *words)
    assert_said(stage.sockshare("doctor"), USAGE, *words)
    wait_until(lambda: "can't" in stage.tail(stage.stderr_log), 15, "exec says why it ends", 0.1)
    assert "Traceback" not in stage.stderr_log.read_text()
    logged = stage.sockshare_log.read_text()
    assert all(word in logged for word in words), logged
    assert "Traceback" not in logged


def test_exec_exits_125_when_configuration_is_wrong(circusd: Circusds) -> None:
    """The status of a program that was refused, as its shell sees it."""
    stage = circusd("uvicorn", leave=True, watcher={"sockshare.sockets": "wbe"})
    result = str(stage.directory / "exec.status")
    script = stage.directory / "program"
    script.write_text(f"#!/bin/sh\n{sys.executable} -m sockshare exec -- true\necho $? > {result}\nexec sleep 60\n")
    script.chmod(0o755)
    text = (stage.directory / "circus.ini").read_text()
    command = next(line for line in text.splitlines() if line.startswith("cmd = "))
    (stage.directory / "circus.ini").write_text(text.replace(command, f"cmd = {script}"))
    refused(stage)
    wait_until(lambda: Path(result).exists() and Path(result).read_text(), 20, "exec ends", 0.1)
    assert Path(result).read_text().strip() == str(REFUSED)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"plugin": {"use_sockets": ""}}, ("use_sockets",), id="use_sockets"),
        pytest.param({"sock": {"so_reuseport": "True"}}, ("so_reuseport", "web"), id="so_reuseport"),
        pytest.param(
            {"watcher": {"hooks.before_signal": "circus_sockshare.hooks.before_signal"}},
            ("graceful_timeout",),
            id="graceful_timeout",
        ),
        pytest.param({"watcher": {"sockshare.ready": "somehow"}}, ("ready", "somehow"), id="ready"),
        pytest.param({"plugin": {"web.registration": "sometimes"}}, ("registration", "sometimes"), id="registration"),
        pytest.param(
            {"watcher": {"cmd": "sockshare exec -- x {fd:wbe}"}},
            ("[watcher:web] cmd:", "{fd:wbe}", "did you mean 'web'?"),
            id="descriptor of no socket",
        ),
        pytest.param(
            {"watcher": {"cmd": "sockshare exec -- x {fd:0}"}},
            ("[watcher:web] cmd:", "{fd:0}", "write {fd:web}"),
            id="number of a descriptor",
        ),
        pytest.param(
            {"watcher": {"cmd": "sockshare exec -- x '{ fd:web }'"}},
            ("[watcher:web] cmd:", "{ fd:web } is not replaced; write {fd:web}"),
            id="blank in a descriptor",
        ),
        pytest.param(
            {"watcher": {"cmd": "sockshare exec -- x {fd:web}", "sockshare.sockets": ""}},
            ("[watcher:web] cmd:", "{fd:web}", "write sockshare.sockets = web"),
            id="descriptor without the key",
        ),
        pytest.param(
            {"watcher": {"sockshare.sockets": "", "sockets": "web"}},
            ("[watcher:web] sockets:", "did you mean 'sockshare.sockets'?"),
            id="key without its prefix",
        ),
        pytest.param(
            {"extra": "[sockshare:web]\nsocket = tcp://127.0.0.1:1001\n"},
            ("[sockshare:web] []:", "supervisord's"),
            id="section of supervisord",
        ),
    ],
)
def test_mistake_is_named_when_configuration_cannot_work(
    circusd: Circusds, options: dict[str, Any], words: tuple[str, ...]
) -> None:
    """One sentence that names the section's key, for each thing that would fail later."""
    assert_said(refused(circusd("uvicorn", leave=True, **options)), USAGE, "can't", *words)


def test_reason_is_logged_when_runtime_directory_cannot_be_made(circusd: Circusds) -> None:
    """The plugin stays up (circus would respawn it every second for ever) and says why in its log."""
    stage = circusd("uvicorn", leave=True, plugin={"runtime_dir": "/dev/null/sockshare"})
    stage.start()
    wait_until(lambda: "/dev/null/sockshare" in stage.tail(stage.sockshare_log), 15, "the log says why", 0.1)
    assert "can't" in stage.sockshare_log.read_text()
    assert "Traceback" not in stage.sockshare_log.read_text()


def test_every_command_exits_75_when_there_is_no_broker(tmp_path: Path) -> None:
    """One sentence with what was looked for, and no waiting for a manager that is not there."""
    environment = {**os.environ, "SOCKSHARE_ENDPOINT": str(tmp_path / "none")}
    nowhere = {name: value for name, value in os.environ.items() if name != "SOCKSHARE_ENDPOINT"}
    for arguments in (("status",), ("reload", "web"), ("exec", "--", "true")):
        done = subprocess.run(
            [sys.executable, "-m", "sockshare", *arguments],
            # `exec` waits 10 s at an endpoint that it was told; it has no reason to below no manager at all.
            env=nowhere if arguments[0] == "exec" else environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert_said(done, NO_BROKER, "can't")


def test_exec_is_refused_when_process_is_not_managed(circusd: Circusds) -> None:
    """The broker of some circusd gives nothing to who merely knows where it is."""
    stage = circusd("uvicorn")
    done = stage.sockshare("exec", "--socket", "web", "--", "true")
    assert_said(done, REFUSED, "can't", "circus")


def test_program_without_its_line_is_given_nothing(circusd: Circusds) -> None:
    """Deny by default: a watcher that names no sockets gets none, and its exec says so."""
    other = f"""
[watcher:other]
cmd = {sys.executable} -m sockshare exec --socket web -- sleep 60
copy_env = True
max_retry = 1
stderr_stream.class = FileStream
stderr_stream.filename = $(circus.env.app_directory)/other.err
"""
    stage = circusd("uvicorn", extra=other)
    log = stage.directory / "other.err"
    wait_until(lambda: "can't" in stage.tail(log), 15, "exec of the other program says why", 0.1)
    assert "section" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_two_circusds_do_not_meet(circusd: Circusds) -> None:
    """Programs find their own manager's broker, whatever else runs."""
    first, second = circusd("uvicorn"), circusd("uvicorn")
    [one], [two] = (stage.status()["sockets"] for stage in (first, second))
    assert one["inode"] != two["inode"]
    assert {holder["pid"] for holder in one["holders"]} == set(first.pids())
    assert {holder["pid"] for holder in two["holders"]} == set(second.pids())
