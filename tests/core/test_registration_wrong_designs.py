"""Eight designs that look right and are not: the machine finds each of them, so it would find them in the product."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from sockshare.core.registration import Registration
from sockshare.core.registration_line import Seat
from sockshare.core.registration_steps import Disarm, Effect, Event, Identity, Means, Record

from .test_registration_machine import AnyOrder


class TimeGrants(Registration):
    """Whoever has not let go in time counts as if he had: a lease."""

    def _late(self, seat: Seat, now: int) -> list[Effect]:
        seat.wait(now)
        return [Record(), *self._fill(now)]


class GrantedBeforeRecorded(Registration):
    """The record is written when all is done."""

    def _in_order(self, effects: list[Effect]) -> list[Effect]:
        return sorted(super()._in_order(effects), key=lambda effect: isinstance(effect, Record))


class NotRecorded(Registration):
    """The next broker begins with an empty line, and waits for those who come back."""

    def record(self) -> dict[str, Any]:
        return {**super().record(), "claims": []}


class EpochBeginsAnew(Registration):
    """Epochs are counted by each broker for itself."""

    def _enter_again(self, now: int) -> list[Effect]:
        self.last_epoch = 0
        return super()._enter_again(now)

    def _next_epoch(self, now: int) -> int:
        return self.last_epoch + 1


class EpochNotHeeded(Registration):
    """Whatever names the claim is about its present hold."""

    def _stale(self, seat: Seat, event: Event) -> bool:
        return False


class BarePid(Registration):
    """A process is its pid."""

    def _same(self, one: Identity, other: Identity) -> bool:
        return one[0] == other[0]


class NotSwept(Registration):
    """Who waits by the record is not armed."""

    def _enter_again(self, now: int) -> list[Effect]:
        effects = super()._enter_again(now)
        self._unswept.clear()
        return [effect for effect in effects if not (isinstance(effect, Disarm) and not effect.epoch)] + self._fill(now)


def narrowed(without: str, **choices: Any) -> type[AnyOrder]:
    """The machine with fewer rules and choices: its attention on few things, so that few runs find what goes wrong."""
    narrow = {"registrations": ("exclusive",), "means": (Means.GATE,), "first": (2, 3), "away": (False,)}
    without += " what_is_recorded_is_recovered"  # which takes the longest
    return type("Narrowed", (AnyOrder,), {**dict.fromkeys(without.split()), **narrow, **choices})


STALE = "nothing_changes_by_a_stale_epoch"  # without it, so that each design fails by what comes of it
COOPERATE_OR_GATE = (Means.COOPERATE, Means.GATE)

#: Which machine finds it, and by which law.
WRONG: dict[str, tuple[type[AnyOrder], str]] = {
    "time grants": (
        narrowed(
            f"{STALE} broker_is_killed something_befalls_a_process message_is_under_way",
            design=TimeGrants,
            means=COOPERATE_OR_GATE,
            acts=("read",),
            notices=("time",),
            asked=("move",),
        ),
        "are armed",
    ),
    "granted before it is recorded": (
        narrowed(
            f"{STALE} message_is_under_way something_befalls_a_process broker_is_asked broker_notices",
            design=GrantedBeforeRecorded,
            first=(0, 0),
            acts=("start",),
        ),
        "are armed",
    ),
    "not recorded": (narrowed(STALE, design=NotRecorded, acts=("start",)), "are armed"),
    "epoch begins anew": (
        narrowed(
            f"{STALE} message_is_under_way broker_notices",
            design=EpochBeginsAnew,
            acts=("start",),
            mishaps=("dies",),
            asked=("move",),
        ),
        "came after|holds it and is not armed",
    ),
    "old connection is read after re-attaching": (
        narrowed(
            f"{STALE} something_befalls_a_process broker_notices",
            reads_left_over=True,
            first=(2, 2),
            steps=(0,),
            means=COOPERATE_OR_GATE,
            acts=("attach and read", "read"),
            fates=("arrives",),
            asked=("move",),
        ),
        "are armed",
    ),
    "release without its epoch": (narrowed("broker_is_killed", design=EpochNotHeeded), "a stale epoch did something"),
    "bare pid": (
        narrowed(
            f"{STALE} broker_is_killed message_is_under_way broker_is_asked",
            design=BarePid,
            mishaps=("dies",),
            notices=("death",),
        ),
        "are armed",
    ),
    "gates are not swept": (
        narrowed(
            f"{STALE} message_is_under_way something_befalls_a_process",
            design=NotSwept,
            means=(Means.GATE, Means.SUSPEND),
            acts=("start", "register"),
        ),
        "is armed, and waits",
    ),
}


@pytest.mark.parametrize(("machine", "law"), WRONG.values(), ids=WRONG)
def test_wrong_design_is_found(machine: type[AnyOrder], law: str) -> None:
    """The law that it breaks is named. The seed is fixed, so that it is the same run each time."""
    runs = settings(
        max_examples=300,
        stateful_step_count=100,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError, match=law):
        run_state_machine_as_test(seed(0)(machine), settings=runs)
