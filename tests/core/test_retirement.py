"""The rollout of a process that the manager itself wants to stop: its successor is there, or none is to come."""

from __future__ import annotations

import json

from sockshare.core.errors import ExitStatus
from sockshare.core.rollout import Rollout, State
from sockshare.core.steps import (
    Drain,
    Drained,
    Finish,
    Gone,
    Plan,
    Process,
    Ready,
    Resume,
    Settle,
    Settled,
    SettleRefused,
    Start,
    Started,
    Suspend,
    Sweep,
    Swept,
    Switched,
    Tick,
    Verify,
)

OLD, NEW = Process(11, "web:1"), Process(21, "web:2")
PLAN = Plan("web", "key", (OLD,), 1, 30.0, 1.0, 0.3, 30.0, "its event registration of web")
ALONE = PLAN._replace(alone=True, verify="http:/health")


def test_old_one_goes_alone_when_none_is_to_come() -> None:
    """No start, no verifying: it is suspended, reads what it has accepted, drains, and is stopped."""
    rollout = Rollout(ALONE._replace(drain="it would die of signal 15", drain_timeout=20.0))
    assert rollout.begin(0.0) == [Suspend(11)]
    assert rollout.suspends == {11}
    effects = rollout.feed(Switched("suspended"), 0.0)
    assert not any(isinstance(effect, Verify | Start) for effect in effects)
    assert rollout.feed(Tick(), 0.3)[-1] == Drain(11)
    assert rollout.feed(Drained("no connection left"), 1.0)[-1] == Settle((11,), (), 1, kill=False)
    rollout.feed(Settled(), 1.0)
    assert rollout.feed(Gone(11), 1.1)[-1] == Sweep()
    assert rollout.feed(Swept(), 1.2)[-1] == Finish("ok", ExitStatus.OK, "")


def test_old_one_serves_on_when_it_cannot_go_alone() -> None:
    """A manager that refuses to stop it gets it back as it was, and nobody is killed for it."""
    rollout = Rollout(ALONE)
    rollout.begin(0.0)
    rollout.feed(Switched("suspended"), 0.0)
    rollout.feed(Tick(), 0.3)
    assert rollout.state is State.STOP
    effects = rollout.feed(SettleRefused("no"), 0.3)
    assert effects[1:] == [Resume(11), Settle((), (11,), 1, kill=True, patience=10.0)]
    assert rollout.feed(Settled(), 0.4)[-1] == Finish("rolled_back", ExitStatus.INTERNAL, "no")


def test_successor_is_known_to_the_next_broker() -> None:
    """The record has what the manager started by itself, and that nothing was to come."""
    for plan in (PLAN._replace(newcomer=NEW), ALONE):
        rollout = Rollout(plan)
        rollout.begin(0.0)
        found, _ = Rollout.recover(json.loads(json.dumps(rollout.record())), 0.0)
        assert found.plan == plan


def test_manager_that_holds_the_old_one_is_not_kept_waiting_for_too_long() -> None:
    """It would stop the old one at the end of its own time; a manager that holds nothing has no such time."""
    held, ours = Rollout(PLAN._replace(newcomer=NEW)), Rollout(PLAN)
    held.begin(100.0)
    ours.begin(100.0)
    assert [held.may_keep_waiting(100.0 + passed) for passed in (0.0, 17.0, 20.0, 28.0, 40.0)] == [10, 10, 8, 0, 0]
    assert [ours.may_keep_waiting(100.0 + passed) for passed in (0.0, 28.0)] == [10, 10]


def test_new_one_stays_held_back_until_it_is_killed() -> None:
    """A broker that comes in the middle of an undo resumes nothing that would take connections with it."""
    rollout = Rollout(PLAN._replace(newcomer=NEW))
    rollout.begin(0.0)
    rollout.feed(Started(NEW), 0.0)
    rollout.feed(Ready(21, "registration"), 1.0)
    found, effects = Rollout.recover(json.loads(json.dumps(rollout.record())), 1.1)
    assert found.state is State.UNDO
    assert Resume(21) not in effects
    assert found.suspends == {21}
    found.feed(Gone(21), 1.2)
    assert not found.suspends
