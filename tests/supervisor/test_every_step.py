"""Whatever happens to whomever at whichever step of a reload under supervisord: as `tests.e2e.test_every_step`.

What is another thing here: the host is supervisord itself, whose death ends all; it has no commands that refuse others;
and it starts a process in one turn of its loop, so that nothing can come in between (State.START).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sockshare.core.rollout import State
from tests.e2e import test_every_step
from tests.e2e.rehearsal import all_ready
from tests.support.mishaps import REACH, Reach
from tests.support.supervisord import Supervisord, supervisord

PAIRS = [
    (state, mishap)
    for state, mishap in test_every_step.PAIRS
    if state is not State.START and mishap not in ("host killed", "circusd busy")
]
#: What a commit waits for; `-m soak` has them all, ten times each.
REPRESENTATIVE = [
    (State.SWITCH, "broker killed"),
    (State.STOP, "circusd late"),
]


def _parameters() -> list[object]:
    def name(state: State, mishap: str) -> str:
        return f"{state.value}-{mishap.replace(' ', '-').replace('circusd', 'supervisord')}"

    soak = (pytest.mark.soak, pytest.mark.timeout(1200))
    return [
        *(pytest.param(state, mishap, 1, id=name(state, mishap)) for state, mishap in REPRESENTATIVE),
        *(pytest.param(state, mishap, 1, id=f"{name(state, mishap)}-once", marks=soak) for state, mishap in PAIRS),
        *(pytest.param(state, mishap, 10, id=f"{name(state, mishap)}-soak", marks=soak) for state, mishap in PAIRS),
    ]


def test_every_state_is_covered() -> None:
    """But for the one that nothing can happen in."""
    assert {state for state, _ in PAIRS} == set(REACH) - {State.START}
    assert set(REPRESENTATIVE) <= set(PAIRS)


@pytest.fixture(scope="module")
def stages() -> Iterator[test_every_step.Stages]:
    """A supervisord for each set of keys that the states ask for; what one mishap leaves, the next one meets."""
    with ExitStack() as stack:
        started: dict[Reach, Supervisord] = {}

        def stage_for(state: State) -> Supervisord:
            reach = Reach(REACH[state].keys)
            if reach not in started:
                watcher = {"sockshare.ready_timeout": "10", **dict(reach.keys)}
                stage = stack.enter_context(supervisord("uvicorn", import_seconds=0.4, watcher=watcher))
                all_ready(stage)
                started[reach] = stage
            return started[reach]

        yield stage_for


@pytest.mark.parametrize(("state", "mishap", "times"), _parameters())
def test_traffic_and_the_next_reload_survive_every_mishap_at_every_step(
    stages: test_every_step.Stages, state: State, mishap: str, times: int
) -> None:
    """0 refused, 0 timed out, resets only of what the killed one had accepted; one generation, the one said."""
    test_every_step.test_traffic_and_the_next_reload_survive_every_mishap_at_every_step(stages, state, mishap, times)
