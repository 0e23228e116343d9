"""Whatever happens to whomever at whichever step: the old version or the new one serves, and the next reload works.

``SOCKSHARE_SOAK_TIMES=3 pytest -n 0 -m soak tests/e2e/test_every_step.py`` runs each pair so often instead of 10 times.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from sockshare.core.errors import ExitStatus
from sockshare.core.rollout import State
from tests.e2e.rehearsal import all_ready, loaded, measure
from tests.support.circusd import Circusd, circusd, wait_until
from tests.support.load import describe
from tests.support.mishaps import MISHAPS, OTHER_INI, REACH, SILENCE, Missed, Reach, applies, at_rest, end_of, mishap_at

OK, INTERNAL, NOT_SERVING = ExitStatus.OK, ExitStatus.INTERNAL, ExitStatus.NOT_SERVING
ENDS = {OK, ExitStatus.ROLLED_BACK, ExitStatus.TIMED_OUT}
ACCEPTED = 1.2  # s before its death that a killed process may have accepted what it has not answered; /slow takes 1

ATTEMPTS = 5  # at a step that may pass unseen

PAIRS = [(state, mishap) for state in REACH for mishap in MISHAPS if applies(state, mishap)]
#: How often `-m soak` runs each pair.
TIMES = int(os.environ.get("SOCKSHARE_SOAK_TIMES", "10"))
#: What a commit waits for; `-m soak` has them all.
REPRESENTATIVE = [
    (State.START, "circusd busy"),
    (State.WARM, "new killed"),
    (State.HOLD, "new killed"),
    (State.SWITCH, "broker killed"),
    (State.VERIFY, "old killed"),
    (State.STOP, "new killed"),
    (State.STOP, "circusd late"),
    (State.UNDO, "broker killed"),
    (State.SWEEP, "broker killed"),
]


def _parameters() -> list[object]:
    def name(state: State, mishap: str) -> str:
        return f"{state.value}-{mishap.replace(' ', '-')}"

    soak = (pytest.mark.soak, pytest.mark.timeout(1200))
    return [
        *(pytest.param(state, mishap, 1, id=name(state, mishap)) for state, mishap in REPRESENTATIVE),
        *(pytest.param(state, mishap, TIMES, id=f"{name(state, mishap)}-soak", marks=soak) for state, mishap in PAIRS),
    ]


def test_every_state_of_a_reload_is_covered() -> None:
    """A state that is added to the rollout has to be added to the mishaps: the enumeration is the machine's own."""
    assert set(REACH) == set(State) - {State.ENDED}
    assert set(REPRESENTATIVE) <= set(PAIRS)


def ends(state: State, mishap: str) -> set[ExitStatus]:
    """The statuses that a reload may end with."""
    if mishap == "circusd silent":
        return {*ENDS, INTERNAL, *([NOT_SERVING] if state is State.RESPAWN else [])}
    if mishap == "old killed" and state is State.UNDO:
        return {*ENDS, NOT_SERVING}  # two have failed: there is no old one to go back to
    return ENDS


Stages = Callable[[State], Circusd]


@pytest.fixture(scope="module")
def stages() -> Iterator[Stages]:
    """A circusd for each set of keys that the states ask for; what one mishap leaves behind, the next one meets."""
    with ExitStack() as stack:
        started: dict[Reach, Circusd] = {}

        def stage_for(state: State) -> Circusd:
            reach = Reach(REACH[state].keys)
            if reach not in started:
                watcher = {"sockshare.ready_timeout": "10", **dict(reach.keys)}
                stage = stack.enter_context(circusd("uvicorn", import_seconds=0.4, watcher=watcher, extra=OTHER_INI))
                all_ready(stage)
                started[reach] = stage
            return started[reach]

        yield stage_for


@pytest.mark.parametrize(("state", "mishap", "times"), _parameters())
def test_traffic_and_the_next_reload_survive_every_mishap_at_every_step(
    stages: Stages, state: State, mishap: str, times: int
) -> None:
    """0 refused, 0 timed out, resets only of what the killed one had accepted; one generation, the one said."""
    stage = stages(state)
    for number in range(times):
        for attempt in range(ATTEMPTS):
            with suppress(Missed):
                _survive(stage, state, mishap, f"{number}.{attempt}")
                break
        else:
            raise AssertionError(f"in {ATTEMPTS} reloads none was seen at {state}")


def _survive(stage: Circusd, state: State, mishap: str, number: str) -> None:
    """Once; raises `Missed` if the step was not seen."""
    [old] = stage.pids()
    before, after = stage.ask(stage.port), f"{state.value}, {mishap}, {number}"
    stage.deploy(after)
    with loaded(stage, "fresh:50", "slow:4") as load:
        measure(0.8)
        with mishap_at(stage, state, mishap) as (scene, happened):
            if mishap != "command killed":
                reload = end_of(scene, happened)
                assert reload.status in ends(state, mishap), reload
                assert reload.status == OK or reload.reason or reload.stderr, f"no reason: {reload}"
        pids = wait_until(lambda: at_rest(stage), SILENCE + 15, "one generation serves and nothing is under way", 0.1)
        result = load.stop()
    said = "the command was killed" if mishap == "command killed" else str(reload)
    fell = mishap in ("new killed", "old killed") or state is State.RESPAWN
    unexcused = [
        record
        for record in result.failures
        if not (fell and record.outcome == "reset" and happened - 2 * ACCEPTED < record.due < happened + 0.3)
    ]
    assert not unexcused, f"{len(unexcused)} failed\n{describe(result, happened)}\n{said}"
    version = stage.ask(stage.port)
    if mishap != "command killed" and reload.status == OK:
        assert (version, old in pids) == (after, False), said
    elif mishap != "command killed" and mishap != "old killed" and reload.status not in (INTERNAL, NOT_SERVING):
        assert (version, pids) == (before, [old]), said
    assert version in (before, after), said
    stage.call("set", name="other", options={"numprocesses": 1}, waiting=True)
    stage.deploy(f"after {after}", import_seconds=0)
    reload = stage.reload()
    assert reload.status == OK, f"the next reload after {mishap} at {state}: {reload}"
    assert stage.ask(stage.port) == f"after {after}"
