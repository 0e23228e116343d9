"""A version that crashes, hangs, or lies about being ready never takes over, and the command says why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.rehearsal import (
    Shape,
    all_ready,
    assert_as_before,
    assert_replaced,
    assert_shape,
    loaded,
    measure,
    shape,
)
from tests.support.circusd import Circusd, circusd
from tests.support.load import assert_answered_by_old_ones, assert_none_failed

ROLLED_BACK, TIMED_OUT = 5, 6


@pytest.fixture(scope="module")
def stage() -> Iterator[Circusd]:
    """Two processes of a good version."""
    with circusd("uvicorn", numprocesses=2, watcher={"sockshare.ready_timeout": "3"}) as started:
        all_ready(started)
        yield started


@pytest.fixture(scope="module")
def before(stage: Circusd) -> Shape:
    """What the stage looked like before the first of them."""
    return shape(stage)


@pytest.mark.parametrize(
    ("fault", "statuses", "said"),
    [
        pytest.param("exit_at_import", {ROLLED_BACK}, "cannot import the database driver", id="exit_at_import"),
        pytest.param("exit_after_ready", {ROLLED_BACK}, "cannot go on", id="exit_after_ready"),
        pytest.param("hang_at_import", {TIMED_OUT}, "", id="hang_at_import"),
        pytest.param("never_register", {ROLLED_BACK, TIMED_OUT}, "", id="never_register"),
        pytest.param("ready_then_exit", {ROLLED_BACK}, "cannot go on", id="ready_then_exit"),
        pytest.param("ready_then_hang", {ROLLED_BACK, TIMED_OUT}, "", id="ready_then_hang"),
    ],
)
def test_old_ones_serve_on_when_new_one_fails(
    stage: Circusd, before: Shape, fault: str, statuses: set[int], said: str
) -> None:
    """0 failed requests, the same pids serve (but for three answers), an exit status and a reason, for each way to be
    broken."""
    pids = stage.pids()
    stage.deploy("broken", fault)
    with loaded(stage, "fresh:100", "keepalive:4x5") as load:
        measure(0.3)
        reload = stage.reload()
        assert_as_before(stage, pids, reload)
        measure(0.3)
        result = load.stop()
    assert reload.status in statuses, reload
    assert reload.reason or reload.stderr.strip(), f"no reason: {reload}"
    assert said in reload.stdout + reload.stderr, f"{said!r} is not in {reload}"
    assert "Traceback" not in reload.stderr, reload
    assert_none_failed(result, since=reload.began)
    # At most `UNNOTICED` answers also of the one that registers: it is held back as soon as that is noticed.
    assert_answered_by_old_ones(result, pids)
    assert_shape(stage, before)


def test_good_version_takes_over_after_broken_ones(stage: Circusd) -> None:
    """A failed deploy leaves nothing that would hinder the next."""
    pids = stage.pids()
    stage.deploy("broken", "exit_at_import")
    assert stage.reload().status == ROLLED_BACK
    stage.deploy("good")
    with loaded(stage, "fresh:100") as load:
        assert_replaced(stage, pids, stage.reload())
        assert_none_failed(load.stop())
