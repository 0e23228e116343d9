"""Who registers out of turn, or does not want to any more: what is done about it, and what people can ask for."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from sockshare.core.errors import NotPermitted
from tests.registration.scenes import Scene, holders, in_line, staged
from tests.support.circusd import is_running, wait_until
from tests.support.oracle import look

#: Seconds within which a registration out of turn is to be reported.
REPORTED = 1.0


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A circusd with three unmodified processes, one of which may be registered."""
    with staged("circus", "taking", processes=3) as stage:
        yield Scene(stage)


def others(scene: Scene) -> list[int]:
    """Who waits, in no order."""
    return sorted(set(in_line(scene.stage)) - set(holders(scene.stage)))


def test_one_that_registers_out_of_turn_is_suspended_named_and_counted(scene: Scene) -> None:
    """Within a second, and the holder holds on."""
    holder, before = scene.holder(), scene.facts()["violations"]
    sinner = others(scene)[0]
    began = time.monotonic()
    scene.signal(sinner, signal.SIGUSR2)
    wait_until(lambda: sinner in scene.armed(), 5, "it has registered", 0.001)
    wait_until(lambda: scene.armed() == [holder], 5, "it is suspended again")
    assert time.monotonic() - began < REPORTED + 0.5  # and what it takes to see it here
    assert scene.facts()["violations"] == before + 1
    assert f"registration violation: {scene.names()[sinner]} (pid={sinner}" in scene.log()
    assert scene.tally(10) == {holder: 10}


def test_holder_that_takes_its_registration_back_is_followed_at_once(scene: Scene) -> None:
    """As a server does that is to stop, or has all the connections it wants; registered again, it waits in line."""
    holder = scene.holder()
    scene.signal(holder, signal.SIGUSR1)
    wait_until(lambda: look([holder], scene.inode) == ([], []), 5, "it has no entry any more")
    began = time.monotonic()
    follower = scene.ask()
    assert follower != holder
    assert time.monotonic() - began < 0.25  # by what it does, not by the stall time-out (0.3 s)
    wait_until(lambda: holder not in in_line(scene.stage), 5, "it is out of the line")
    scene.signal(holder, signal.SIGUSR2)
    wait_until(lambda: holder in in_line(scene.stage), 5, "it is in line again")
    wait_until(lambda: scene.armed() == [follower], 5, "the follower holds it alone")


def test_one_that_took_its_registration_back_while_it_waited_is_passed_over(scene: Scene) -> None:
    """It can't be moved to; when the holder dies another one has it, and nobody waits for a stall to be noticed."""
    holder, (gone, other) = scene.holder(), others(scene)
    scene.signal(gone, signal.SIGUSR1)
    wait_until(lambda: look([gone], scene.inode) == ([], []), 5, "it has no entry any more")
    with pytest.raises(NotPermitted, match="it has taken its registration back"):
        scene.move(gone)
    assert scene.armed() == [holder]
    began = time.monotonic()
    scene.signal(holder, signal.SIGKILL)
    assert scene.ask() == other
    assert time.monotonic() - began < 0.25
    scene.signal(gone, signal.SIGUSR2)
    wait_until(lambda: len(in_line(scene.stage)) == 3, 15, "it is in line again, and so is another")
    wait_until(lambda: scene.armed() == [other], 5, "one holds it")


@pytest.mark.parametrize(
    ("manager", "enforce"),
    [
        ("supervisord", "stop"),
        pytest.param("circus", "stop", marks=pytest.mark.soak),
        ("circus", "warn"),
        pytest.param("supervisord", "warn", marks=pytest.mark.soak),
    ],
)
def test_policy_says_what_is_done_to_one_that_registers_out_of_turn(manager: str, enforce: str) -> None:
    """warn: it is named and counted, and stays; stop: the manager stops that very process, and starts another."""
    with staged(manager, "taking", processes=2, enforce=enforce) as stage:
        scene = Scene(stage)
        holder = scene.holder()
        (sinner,) = others(scene)
        scene.signal(sinner, signal.SIGUSR2)
        wait_until(lambda: scene.facts()["violations"] >= 1, 5, "it is counted", 0.05)
        if enforce == "warn":
            assert sorted(scene.armed()) == sorted([holder, sinner])
            assert f"violation: {scene.names()[sinner]} (pid={sinner})" in scene.log()
        else:
            wait_until(lambda: not is_running(sinner), 10, "it is stopped", 0.05)
            wait_until(lambda: len(in_line(stage)) == 2, 15, "another one is in line", 0.05)
            assert is_running(holder)
            assert scene.holder() == holder
