"""Whatever happens in whatever order, with the broker killed anywhere, the promises of a registration hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sockshare.core.registration import ACK_TIMEOUT, Registration
from sockshare.core.registration_steps import (
    SUPPORTED,
    Advance,
    Disarmed,
    Event,
    Means,
    MoveTo,
    NotDisarmed,
    Paused,
    Policy,
    Released,
    Resumed,
    Stalled,
)
from tests.support.registration_world import Process, World, facts

PIDS = 3
ANY = st.integers(0, PIDS - 1)  # a living process


def one_of(name: str) -> st.SearchStrategy[Any]:
    """One of the choices that the machine has under *name*: a narrower machine has fewer."""
    return st.runner().flatmap(lambda machine: st.sampled_from(getattr(machine, name)))


class AnyOrder(RuleBasedStateMachine):
    """Rules for the world; the laws are the world's, and the invariants below.

    Few rules, with many choices each: a run uses a random part of the rules only.
    """

    design: type[Registration] = Registration
    reads_left_over = False
    registrations: Sequence[str | int] = ("exclusive", "exclusive", 2, "latest", "rotate", "shared")
    means: Sequence[Means] = tuple(Means)
    acts: Sequence[str] = ("start", "attach", "read", "attach and read", "register", "release")
    fates: Sequence[str] = ("arrives", "arrives, and again", "all are lost")
    mishaps: Sequence[str] = ("dies", "stops", "goes on", "is stuck", "is not stuck")
    notices: Sequence[str] = ("death", "registration", "time")
    asked: Sequence[str] = ("move", "pause", "resume", "take over", "stall", "advance")

    steps: Sequence[int] = range(6)
    away: Sequence[bool] = (False, True)
    first: tuple[int, int] = (0, PIDS)  # so many processes are there to begin with, at least and at most

    @initialize(
        registration=one_of("registrations"),
        means=st.runner().flatmap(
            lambda machine: st.lists(one_of("means"), min_size=machine.first[0], max_size=machine.first[1])
        ),
    )
    def begin(self, registration: str | int, means: list[Means]) -> None:
        self.world = World(Policy.of(registration), self.design, reads_left_over=self.reads_left_over)
        self.checked: dict[str, Any] = {}
        for pid, one in enumerate(means):
            self.start(pid, one)

    def one(self, which: int) -> Process | None:
        living = self.world.living
        return living[which % len(living)] if living else None

    def start(self, pid: int, means: Means) -> None:
        supported = SUPPORTED[self.world.policy.kind]
        process = self.world.start(pid, means if means in supported else Means.GATE)
        if process is not None:
            self.world.attach(process)

    @rule(which=ANY, act=one_of("acts"), means=one_of("means"))
    def process_acts(self, which: int, act: str, means: Means) -> None:
        if act == "start":
            self.start(which, means)
        elif process := self.one(which):
            for one in act.split(" and "):
                getattr(self.world, one)(process)

    @rule(which=ANY, message=st.integers(0, 3), fate=one_of("fates"))
    def message_is_under_way(self, which: int, message: int, fate: str) -> None:
        if process := self.one(which):
            if fate == "all are lost":
                process.outbox.clear()
            else:
                self.world.deliver(process, message, again=fate == "arrives, and again")

    @rule(which=ANY, what=one_of("mishaps"), replaced=one_of("means"))
    def something_befalls_a_process(self, which: int, what: str, replaced: Means) -> None:
        if process := self.one(which):
            if what == "dies":
                self.world.die(process)
                self.start(process.claim.pid, replaced)
            elif what in ("stops", "goes on"):
                process.stopped = what == "stops"
            else:
                process.stuck = what == "is stuck"

    @rule(which=ANY, what=one_of("notices"), nanoseconds=st.sampled_from([0, 1, ACK_TIMEOUT // 2, ACK_TIMEOUT]))
    def broker_notices(self, which: int, what: str, nanoseconds: int) -> None:
        process = self.one(which)
        if what == "time":
            self.world.wait(nanoseconds)
        elif what == "death" or process is None:
            self.world.reap()
        else:
            self.world.observe(process)

    @rule(which=ANY, other=ANY, what=one_of("asked"))
    def broker_is_asked(self, which: int, other: int, what: str) -> None:
        process, successor, broker = self.one(which), self.one(other), self.world.broker
        if process is None or successor is None or broker is None:
            return
        entry = broker.find(process.key)
        events: dict[str, Event] = {
            "move": MoveTo(process.key),
            "pause": Paused(process.key, successor.key),
            "resume": Resumed(process.key),
            "take over": Resumed(process.key, first=True),
            "stall": Stalled(process.key, 0 if entry is None else entry.epoch),
            "advance": Advance(),
        }
        self.world.feed(events[what])

    @rule(steps=one_of("steps"), away=one_of("away"))
    def broker_is_killed(self, steps: int, away: bool) -> None:
        """After so many steps more; the next one comes at once, unless it is *away*. If there is none, it comes now."""
        self.world.away = away
        if self.world.broker is None:
            self.world.restart()
        self.world.kill_after(steps)

    # The laws that the world does not see to.

    @rule(which=ANY, off=st.sampled_from([-1, 1, 5]), kind=st.sampled_from([Released, Disarmed, NotDisarmed, Stalled]))
    def nothing_changes_by_a_stale_epoch(self, which: int, off: int, kind: type) -> None:
        broker, process = self.world.broker, self.one(which)
        if broker is None or process is None:
            return
        entry = broker.find(process.key)
        epoch = off + (0 if entry is None else entry.epoch)
        event = NotDisarmed(process.key, epoch, "") if kind is NotDisarmed else kind(process.key, epoch)
        before = broker.record()
        assert broker.feed(event, self.world.now) == [], "a stale epoch did something"
        assert broker.record() == before

    @invariant()
    def those_who_are_armed_count_as_holders(self) -> None:
        if self.world.broker is not None:
            holders = {entry.claim.key for entry in self.world.broker.holders}
            armed = {process.key for process in self.world.living if process.armed and not process.by_itself}
            assert armed <= holders, f"{armed - holders} are armed, and do not count"

    @invariant()
    def places_are_not_given_twice(self) -> None:
        """Beyond the limit are only those who could never be kept out."""
        if self.world.broker is not None:
            granted = [entry for entry in self.world.broker.holders if entry.epoch]
            assert len(granted) <= self.world.policy.limit
            assert len({entry.epoch for entry in granted}) == len(granted)

    @invariant()
    def what_is_recorded_is_recovered(self) -> None:
        if self.world.broker is not None and self.checked != (record := self.world.broker.record()):
            self.checked = record
            record = json.loads(json.dumps(record))
            again, _ = Registration.recover(self.world.policy, record, self.world.now)
            assert facts(again.record()) == facts(record)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
