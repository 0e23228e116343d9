"""Processes of other users that forge notifications, send connections that linger, and flood: nobody notices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.rehearsal import all_ready, loaded
from tests.support.circusd import Circusd, Reload, circusd, wait_until
from tests.support.load import assert_answered_by_old_ones, assert_none_failed
from tests.support.strangers import NOBODY, READY, SOMEBODY, Stranger, strangers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which only root may")
TIMED_OUT = 6
Starter = Callable[..., Stranger]

#: Has every Python of a stage take this kernel for one that can't refuse descriptors (before Linux 6.16).
OLD_KERNEL = """\
import sys
if any(name in " ".join(sys.orig_argv) for name in ("supervisord", "circus", "sockshare.broker")):
    from sockshare.kernel import listeners
    listeners.refuse_descriptors = lambda sock: False
"""


def on_old_kernel(stage: Circusd) -> None:
    """Have *stage*, which is not started yet, do without ``SO_PASSRIGHTS``."""
    (stage.directory / "sitecustomize.py").write_text(OLD_KERNEL)
    stage.environment["PYTHONPATH"] = f"{stage.directory}{os.pathsep}{stage.environment.get('PYTHONPATH', '')}"


@pytest.fixture
def start() -> Iterator[Starter]:
    with strangers() as starter:
        yield starter


def sockets(stage: Circusd) -> set[Path]:
    """The notify sockets, under their final names."""
    return {path for path in (stage.runtime / "notify").iterdir() if path.name.isdecimal()}


def forge_readiness(stage: Circusd, start: Starter) -> None:
    """A version that never serves is not ready because strangers say so: the old one serves on, and nobody is told
    what they forged."""
    pids, before = stage.pids(), sockets(stage)
    stage.deploy("broken", "hang_at_import")
    with loaded(stage, "fresh:50") as load:
        began = time.monotonic()
        with stage.command("reload", "web", "--json", "--timeout", "2") as command:
            (new,) = wait_until(lambda: sockets(stage) - before, 10, "the new process has its socket")
            for uid in (NOBODY, SOMEBODY):
                assert start(uid, "say", READY, new).done() == 1
                start(uid, "say", READY, new).close()
            output, errors = command.communicate(timeout=30)
        reload = Reload.read(command.returncode, output, errors, began)
        assert reload.status == TIMED_OUT, reload
        assert "ready" not in reload.names
        assert stage.pids() == pids
        result = load.stop()
    assert_none_failed(result, since=reload.began)
    assert_answered_by_old_ones(result, pids)
    document = stage.status()
    assert document["broker"]["refusals"] >= 2
    assert "forged" not in str(document)


def flood(stage: Circusd, start: Starter) -> None:
    """A flood of another user's writes nothing into the journal; one of the process's own little, and its last word."""
    journal = stage.runtime / "journal.json"
    (path,) = sockets(stage)
    refusals = stage.status()["broker"]["refusals"]
    before = journal.stat()
    stranger = start(SOMEBODY, "flood", 1.0, path)
    assert stranger.done() == "begun"
    assert stranger.done() > 100
    assert stage.status()["broker"]["refusals"] > refusals + 100
    assert journal.stat().st_ino == before.st_ino
    assert journal.stat().st_mtime_ns == before.st_mtime_ns

    stage.deploy("good", "chatty")
    written = set()

    def is_said() -> bool:
        with suppress(FileNotFoundError):
            written.add(journal.stat().st_mtime_ns)
        return '"2999"' in journal.read_text()

    reload = stage.reload()
    assert reload.status == 0, reload
    wait_until(is_said, 30, "the last of 3,000 statuses is in the journal", 0.001)
    assert [holder["status"] for holder in stage.status()["sockets"][0]["holders"]] == ["2999"]
    print(f"written {len(written)} times after the reload")
    assert len(written) < 30


def test_forged_readiness_counts_for_nothing(circusd: Callable[..., Circusd], start: Starter) -> None:
    """See `forge_readiness`."""
    stage = circusd("uvicorn", watcher={"sockshare.ready": "notify"})
    forge_readiness(stage, start)


def test_broker_and_host_go_on_when_lingering_connections_come(start: Starter) -> None:
    """Where they can't be refused: of the broker that is there, and of the plugin as the process dies."""
    with circusd("uvicorn", leave=True) as stage:
        on_old_kernel(stage)
        stage.up()
        all_ready(stage)
        (path,), (pid,), broker = sockets(stage), stage.pids(), stage.broker()
        assert stage.kill(broker, signal.SIGSTOP)
        try:
            assert start(SOMEBODY, "linger", 3, path).done() == 3
        finally:
            stage.kill(broker, signal.SIGCONT)
        began = time.monotonic()
        assert stage.status()["broker"] == {"pid": broker, "refusals": 3}
        assert time.monotonic() - began < 5
        assert stage.kill(broker, signal.SIGSTOP)
        try:
            assert start(SOMEBODY, "linger", 3, path).done() == 3
            stage.kill(pid)
            wait_until(lambda: not path.exists(), 10, "the plugin has closed the socket")
        finally:
            stage.kill(broker, signal.SIGCONT)
        wait_until(lambda: stage.pids() not in ([], [pid]), 10, "the program runs again")
        all_ready(stage)
        assert stage.broker() == broker


def test_flood_is_kept_out_of_the_journal(circusd: Callable[..., Circusd], start: Starter) -> None:
    """See `flood`."""
    stage = circusd("uvicorn")
    all_ready(stage)
    flood(stage, start)
