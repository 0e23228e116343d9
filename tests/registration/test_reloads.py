"""A rolling reload moves the registration along: one of the processes has it at any moment, an old one or a new one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.e2e.rehearsal import assert_replaced, loaded, measure
from tests.e2e.test_kills import STEPS, reload_and
from tests.registration.scenes import START_WINDOW, Scene, in_line, staged
from tests.registration.storm import broker_of
from tests.support.circusd import wait_until
from tests.support.load import assert_none_failed
from tests.support.oracle import Oracle

SOAK = (pytest.mark.soak, pytest.mark.timeout(600))


@pytest.mark.parametrize(
    ("manager", "program", "times"),
    [
        pytest.param("circus", "gated", 1, id="circus-gated"),
        pytest.param("supervisord", "taking", 1, id="supervisord-taking"),
        *(
            pytest.param(manager, program, 10, id=f"{manager}-{program}-soak", marks=SOAK)
            for manager in ("circus", "supervisord")
            for program in ("gated", "taking", "asyncio")
        ),
    ],
)
def test_reload_moves_the_registration_along(manager: str, program: str, times: int) -> None:
    """Holder and standby are replaced, each answer is verified, no request fails, never two, and it ends with one."""
    with staged(manager, program, processes=2, options={"watcher": {"sockshare.verify": "http:/"}}) as stage:
        scene = Scene(stage)
        assert stage.process is not None
        with Oracle(scene.inode, stage.process.pid) as oracle, loaded(stage, "fresh:80") as load:
            for _ in range(times):
                before = stage.pids()
                reload = stage.reload()
                assert_replaced(stage, before, reload)
                assert scene.holder() in stage.pids()
                measure(0.2)
            assert_none_failed(load.stop(), at_least=20)
            watch = oracle.stop()
        several = watch.several(window=0.0 if program == "gated" else START_WINDOW)
        assert not several, several
        assert max((gap.end - gap.start for gap in watch.gaps()), default=0.0) < 0.25
        assert len(scene.tally(5)) == 1


def test_roll_back_gives_the_registration_back() -> None:
    """The new one has it for long enough to be verified, and fails; then the one that had it before has it again."""
    verify = {"sockshare.verify": "http:/"}
    with staged("circus", "node", processes=2, options={"watcher": verify}) as stage:
        scene = Scene(stage)
        holder = scene.holder()
        stage.deploy("v2", fault="answer_500")
        for _ in range(2):
            reload = stage.reload()
            assert reload.status == 5, reload
            assert holder in stage.pids()
            assert scene.holder() == holder
            assert scene.tally(5) == {holder: 5}


@pytest.mark.parametrize(
    ("manager", "program", "steps"),
    [
        pytest.param("circus", "taking", ("switch",), id="circus-taking"),
        *(
            pytest.param(manager, program, STEPS * 3, id=f"{manager}-{program}-soak", marks=SOAK)
            for manager in ("circus", "supervisord")
            for program in ("gated", "taking")
        ),
    ],
)
def test_one_holds_it_when_the_broker_is_killed_in_a_reload(manager: str, program: str, steps: Sequence[str]) -> None:
    """At whatever step: it is finished or undone, one of those that are left holds the registration, none fails."""
    with staged(manager, program, processes=2) as stage:
        scene = Scene(stage)
        assert stage.process is not None
        with Oracle(scene.inode, stage.process.pid) as oracle, loaded(stage, "fresh:50") as load:
            for step in steps:
                before = stage.pids()
                reload = reload_and(stage, step, lambda _: stage.kill(broker_of(stage, scene.inode)))
                assert reload.status in (0, 5), f"killed at {step}: {reload}"
                after = stage.pids()
                assert len(after) == 2
                assert (after == before) == (reload.status == 5), f"killed at {step}: {reload}"
                assert scene.holder() in after
                wait_until(lambda after=after: sorted(in_line(stage)) == after, 10, "they are in line")  # type: ignore[misc]
            assert_none_failed(load.stop(), at_least=20)
            watch = oracle.stop()
        assert not watch.several(window=0.0 if program == "gated" else START_WINDOW)
