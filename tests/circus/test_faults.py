"""The plugin under circusd at its limit of descriptors, or on a kernel that can't do what it needs."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

from tests.e2e.rehearsal import all_ready, assert_replaced, loaded
from tests.support.circusd import Circusd, is_running, wait_until
from tests.support.load import assert_none_failed
from tests.support.mishaps import WITHOUT_PIDFD

Circusds = Callable[..., Circusd]


def test_plugin_is_well_again_when_it_may_open_descriptors_again(circusd: Circusds) -> None:
    """At its limit during some commands, which fail with a sentence; afterwards the next ones work, with nothing
    restarted, and a process that circus starts anew comes up."""
    stage = circusd("uvicorn")
    all_ready(stage)
    host, broker = stage.host(), stage.broker()
    soft, hard = resource.prlimit(host, resource.RLIMIT_NOFILE)
    # The lowest number that is free: nothing can be opened from here on.
    used = {int(name) for name in os.listdir(f"/proc/{host}/fd")}
    lowest = next(number for number in range(len(used) + 1) if number not in used)
    with loaded(stage, "fresh:20") as load:
        resource.prlimit(host, resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            for arguments in (("status",), ("reload", "web"), ("doctor",)):
                said = stage.sockshare(*arguments)
                assert "Traceback" not in said.stderr, said
        finally:
            resource.prlimit(host, resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(lambda: stage.sockshare("status").returncode == 0, 10, "status works again", 0.1)
        assert_replaced(stage, stage.pids(), stage.reload())
        assert_none_failed(load.stop())
    assert (stage.host(), stage.broker()) == (host, broker)
    [pid] = stage.pids()
    stage.kill(pid)
    wait_until(lambda: stage.pids() not in ([], [pid]), 10, "circus has started another", 0.1)
    all_ready(stage)
    assert "circusd: can't take its answer" in stage.sockshare_log.read_text(), "the limit was not met"


def test_kernel_without_pidfd_is_one_sentence(circusd: Circusds, tmp_path: Path) -> None:
    """State *refused*, without a broker: status and doctor say so and exit 2, `exec` exits 125; nothing loops; the
    plugin ends with circusd."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_PIDFD)
    stage = circusd("uvicorn", leave=True, watcher={"max_retry": "2"})
    stage.environment["PYTHONPATH"] = f"{tmp_path}:{stage.environment['PYTHONPATH']}"
    stage.start()
    sentence = "can't run sockshare: it needs pidfd_open(2)"
    said: list[str] = []

    def is_refused() -> bool:
        done = stage.sockshare("status")
        said.append(f"exit {done.returncode}: {done.stdout}{done.stderr}")
        return done.returncode == 2 and sentence in done.stdout

    wait_until(is_refused, 20, "status says it", 0.1)
    assert "(1 mistakes)" in said[-1]
    doctor = stage.sockshare("doctor")
    assert (doctor.returncode, sentence in doctor.stdout) == (2, True), doctor
    wait_until(lambda: sentence in stage.tail(stage.stderr_log), 15, "exec says it", 0.1)
    assert "Traceback" not in stage.stderr_log.read_text()
    refused = stage.sockshare("exec", "--", "true")
    assert (refused.returncode, sentence in refused.stderr) == (125, True), refused
    logged = stage.sockshare_log.read_text()
    errors = [line for line in logged.splitlines() if " ERROR " in line]
    assert len(errors) == 1, logged
    assert sentence in errors[0]
    host = stage.host()
    assert host
    assert stage.process is not None
    stage.process.kill()
    stage.process.wait()
    wait_until(lambda: not is_running(host), 10, "the plugin ends with circusd", 0.1)
