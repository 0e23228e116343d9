"""Whatever comes over the link instead of a broker's words, supervisord is not held up, and no request notices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from xmlrpc.client import Fault

import pytest

from tests.e2e.rehearsal import all_ready, assert_replaced, loaded, measure
from tests.supervisor.test_faults import INTERFACES
from tests.support.apps import impostor
from tests.support.circusd import resident
from tests.support.load import assert_none_failed
from tests.support.supervisord import BROKER, Supervisord, supervisord, wait_until


@pytest.fixture(scope="module")
def stage() -> Iterator[Supervisord]:
    """One process."""
    hold = {"sockshare_ready_hold": "0.1", "sockshare_quiesce": "0"}
    with supervisord("plain", watcher=hold, extra=INTERFACES, leave=True) as started:
        impostor.install(started.directory, started.environment)
        started.up()
        all_ready(started)
        yield started


@pytest.mark.parametrize(
    ("mode", "seconds"),
    [
        ("no json", 0.5),
        ("endless nonsense", 0.5),
        ("endless claims", 1.0),
        *(pytest.param(mode, 3.0, marks=pytest.mark.soak) for mode in impostor.MODES),
    ],
)
def test_supervisord_is_not_held_up(stage: Supervisord, mode: str, seconds: float) -> None:
    """It answers, its programs serve, tools are told; its loop is ours for 50 ms at most, and its memory is its own."""
    assert stage.process is not None
    stage.rpc("loop.worst")
    memory = resident(stage.process.pid)
    said = stage.directory / "mode"
    said.write_text(mode)
    with loaded(stage, "fresh:50") as load:
        try:
            for pid in stage.pids(BROKER):
                stage.kill(pid)
            began = time.monotonic()
            while time.monotonic() < began + seconds:
                asked = time.monotonic()
                assert stage.alive()
                assert time.monotonic() - asked < 1
                measure(0.1)
            with pytest.raises(Fault, match="can't ask the broker"):
                stage.rpc("sockshare.status")
            grown = resident(stage.process.pid) - memory
        finally:
            said.unlink()
        wait_until(lambda: back(stage), 30, "a broker answers", 0.1)
        assert_replaced(stage, stage.pids(), stage.reload())
        assert_none_failed(load.stop())
    (own, wall), (callback, _) = stage.rpc("loop.worst")
    print(f"\n{mode}: away for {own * 1000:.1f} ms at most ({wall * 1000:.1f}), {grown} KiB more")
    assert own < 0.05, (own, wall, callback)
    assert grown < 48 * 1024, f"{grown} KiB"  # what waits for a broker that does not read, 16 MiB, twice


def back(stage: Supervisord) -> bool:
    """Whether a broker answers; impostors are killed meanwhile."""
    for pid in stage.pids(BROKER):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == impostor.NAME:
                stage.kill(pid)
    with suppress(Fault):
        return bool(stage.rpc("sockshare.status"))
    return False
