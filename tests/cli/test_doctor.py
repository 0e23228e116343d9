"""``sockshare doctor`` as a process, against a broker that does as it is told, or none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.client.host import ROOT, Host

NOTE = {"level": "note", "subject": "kernel", "sentence": "no X: so what"}
PROBLEM = {"level": "problem", "subject": "web:1 (pid 20)", "sentence": "it is not ready"}


def test_findings_are_a_line_each(host: Host) -> None:
    """Exit 3 as soon as one of them is a problem."""
    host.start(findings=[PROBLEM, NOTE])
    done = host.run("doctor")
    assert done.returncode == 3, done
    assert done.stdout.splitlines() == [
        "problem: web:1 (pid 20): it is not ready",
        "note: kernel: no X: so what",
    ]
    assert json.loads(host.run("doctor", "--json").stdout) == {"version": 1, "findings": [PROBLEM, NOTE]}


def test_notes_leave_all_well(host: Host) -> None:
    """Exit 0, and it is said."""
    host.start(findings=[NOTE])
    done = host.run("doctor")
    assert (done.returncode, done.stdout) == (0, "note: kernel: no X: so what\nall is well\n")


def test_what_can_not_be_seen_is_not_called_well(host: Host) -> None:
    """Exit 0, as nothing is known to be wrong; but the last line claims no more than that."""
    host.start(findings=[NOTE, {**NOTE, "sentence": "can't see it", "unseen": True}])
    done = host.run("doctor")
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "nothing wrong is seen, but not all can be seen: see the notes"


def test_mistakes_of_a_refused_configuration_are_shown(host: Host) -> None:
    """Exit 2, as of `status`."""
    host.start(state="refused", mistakes=["[watcher:web] sockshare.sockets: no such socket 'wbe'"])
    done = host.run("doctor")
    assert done.returncode == 2, done
    assert "no such socket 'wbe'" in done.stdout


def test_manager_without_a_broker_is_named(tmp_path: Path) -> None:
    """Exit 75; what looks like a manager and has no meeting point is told what it lacks."""
    with subprocess.Popen(["supervisord", "60"], executable="/bin/sleep") as manager:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "sockshare", "--endpoint", str(tmp_path / "none"), "doctor"],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=30,
            )
        finally:
            manager.kill()
    assert done.returncode == 75, done
    assert f"problem: broker: can't find a broker at {tmp_path / 'none'}" in done.stdout
    assert not [line for line in done.stdout.splitlines() if not line.startswith("problem: ")]
    assert done.stdout.count(f"supervisord (pid {manager.pid},") == 1, done.stdout
    line = next(line for line in done.stdout.splitlines() if f"supervisord (pid {manager.pid}, uid" in line)
    assert "[rpcinterface:sockshare]" in line
