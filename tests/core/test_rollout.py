"""The laws of a reload, on the pure state machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sockshare.core.cost import Cost
from sockshare.core.errors import ExitStatus
from sockshare.core.rollout import Rollout, State, Turn
from sockshare.core.steps import (
    Cancelled,
    Drain,
    Drained,
    Effect,
    Event,
    Find,
    Finish,
    Gone,
    HandOver,
    HoldBack,
    Plan,
    Process,
    Ready,
    Registered,
    Report,
    Resume,
    Settle,
    Settled,
    SettleRefused,
    Start,
    Started,
    StartRefused,
    Stopped,
    Suspend,
    Sweep,
    Swept,
    Switched,
    TakePlace,
    Tick,
    Unready,
    Verified,
    Verify,
    VerifyFailed,
)

OLD = (Process(11, "web:1"), Process(12, "web:2"))
NEW = (Process(21, "web:3"), Process(22, "web:4"))


def plan(old: tuple[Process, ...] = OLD[:1], expires: float | None = None) -> Plan:
    awaited = "its event registration of web"
    return Plan("web", "key", old, len(old), 30.0, 1.0, 0.3, 30.0, awaited, expires=expires)


def careful(old: tuple[Process, ...] = OLD[:1]) -> Plan:
    """With a page to verify, and drained from outside."""
    return plan(old)._replace(verify="http:/health", drain="it would die of signal 15", drain_timeout=20.0)


class Drive:
    """Feeds a rollout, and keeps what came out; what is left over is *swept*, at once."""

    def __init__(
        self,
        what: Plan,
        swept: Swept | None = Swept(),  # noqa: B008  it is frozen
        leaving: Sequence[Turn] = (),
    ) -> None:
        self.swept = swept
        self.rollout = Rollout(what, leaving)
        self.now = 100.0
        self.effects: list[Effect] = list(self.rollout.begin(self.now))

    def feed(self, *events: Event) -> list[Effect]:
        new: list[Effect] = []
        for event in events:
            new += self._swept(self.rollout.feed(self._answering(event, [*self.effects, *new]), self.now))
        self.effects += new
        return new

    def hurry(self) -> None:
        self.effects += self._swept(self.rollout.hurry(self.now))

    def _swept(self, came: list[Effect]) -> list[Effect]:
        if self.swept is None:
            return came
        new: list[Effect] = [effect for effect in came if not isinstance(effect, Sweep)]
        for effect in came:
            if isinstance(effect, Sweep):
                new += self._swept(self.rollout.feed(replace(self.swept, of=effect.pid), self.now))
        return new

    def _answering(self, event: Event, effects: list[Effect]) -> Event:
        """An answer is the answer to the last question of its kind."""
        if isinstance(event, Started | StartRefused):
            return replace(event, turn=[one.turn for one in effects if isinstance(one, Start | Find)][-1])
        if isinstance(event, Settled | SettleRefused):
            return replace(event, turn=[one.turn for one in effects if isinstance(one, Settle)][-1])
        return event

    def after(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.feed(Tick())

    def restart(self) -> list[Effect]:
        """The broker is killed; the next one has only the record, as JSON."""
        record = json.loads(json.dumps(self.rollout.record()))
        self.rollout, effects = Rollout.recover(record, self.now)
        self.effects += effects
        return effects

    @property
    def state(self) -> State:
        return self.rollout.state

    @property
    def steps(self) -> list[str]:
        return [effect.step for effect in self.effects if isinstance(effect, Report)]

    @property
    def finish(self) -> Finish:
        (finish,) = [effect for effect in self.effects if isinstance(effect, Finish)]
        return finish

    def to_warm(self, new: Process = NEW[0]) -> Drive:
        self.feed(Started(new))
        return self

    def to_hold(self, new: Process = NEW[0]) -> Drive:
        self.to_warm(new).feed(Ready(new.pid, "registration"))
        return self

    def to_switch(self, new: Process = NEW[0]) -> Drive:
        self.to_hold(new).after(1.0)
        return self

    def to_quiesce(self, new: Process = NEW[0]) -> Drive:
        self.to_switch(new).feed(Switched("suspended"))
        return self

    def to_drain(self, new: Process = NEW[0]) -> Drive:
        self.to_quiesce(new).after(0.3)
        return self

    def to_verify(self, new: Process = NEW[0]) -> Drive:
        return self.to_quiesce(new)

    def to_drain_from_outside(self, new: Process = NEW[0]) -> Drive:
        self.to_verify(new).feed(Verified("200"))
        self.after(0.3)
        return self


def test_steps_come_in_order_when_all_goes_well() -> None:
    """A reload starts, believes, switches, quiesces, drains and stops; and only then is it done."""
    drive = Drive(plan()).to_drain()
    assert drive.effects[-1] == Settle(retire=(11,), known=(21,), size=1, kill=False)
    drive.feed(Settled(), Gone(11))
    assert drive.steps == ["start", "ready", "hold", "switch", "quiesce", "drain", "stop", "done"]
    assert drive.finish == Finish("ok", ExitStatus.OK, "")


def test_last_line_says_what_all_the_ends_have_cost() -> None:
    """Each stop says what it cost, and the last line what all did, also when the broker was killed between."""
    drive = Drive(plan(OLD)._replace(cut="daphne stops at once on TERM")).to_drain()
    drive.feed(Settled(), Gone(11, "exited with status 0", Cost(cut=2)))
    drive.restart()
    drive.feed(Settled())
    drive.to_drain(NEW[1])
    drive.feed(Gone(12, "exited with status 0", Cost(met=1)), Settled())
    why = "2 requests were cut: daphne stops at once on TERM"
    met = "1 request was met by the end of a kept connection: clients repeat it, unless it is a POST"
    stops = [(one.reason, one.cost) for one in drive.effects if isinstance(one, Report) and one.step == "stop"]
    assert stops == [(why, Cost(2, cause="daphne stops at once on TERM")), (met, Cost(met=1))]
    total = Cost(2, 1, cause="daphne stops at once on TERM")
    assert drive.finish == Finish("ok", ExitStatus.OK, f"{why}; {met}", total)
    last = drive.effects[-2]
    assert isinstance(last, Report)
    assert (last.step, last.reason, last.cost) == ("done", f"{why}; {met}", total)


@pytest.mark.parametrize(
    ("stage", "end", "why"),
    [
        ("to_drain", "exited with status 0", "daphne stops at once on TERM"),
        ("to_drain", "was killed by signal 9", "it was killed, as it had not ended 30 s after its stop signal"),
        ("to_quiesce", "was killed by signal 11", "it was killed by signal 11"),
        ("outlast", "exited with status 0", "they took longer than drain_timeout, 20 s"),
    ],
)
def test_cause_of_a_cut_is_said(stage: str, end: str, why: str) -> None:
    """Whether the signal, the time-outs or a crash have cut it."""
    what = careful() if stage == "outlast" else plan()
    drive = Drive(what._replace(cut="daphne stops at once on TERM"))
    if stage == "outlast":
        drive.to_drain_from_outside().after(20.0)
        drive.restart()
    else:
        getattr(drive, stage)()
    drive.feed(Gone(11, end, Cost(cut=1)), Settled())
    assert drive.finish.reason == f"1 request was cut: {why}"


def test_rollback_says_what_the_ends_before_it_have_cost() -> None:
    """Of several processes some were replaced."""
    drive = Drive(plan(OLD)).to_drain()
    drive.feed(Settled(), Gone(11, "has died", Cost(unseen="no broker looked on as it ended")))
    drive.to_warm(NEW[1]).feed(Gone(22, "exited with status 1"), Settled())
    said = "; can't see whether requests were cut: no broker looked on as it ended"
    assert drive.finish.result == "rolled_back"
    assert drive.finish.reason.endswith(said)
    last = drive.effects[-2]
    assert isinstance(last, Report)
    assert (last.step, last.reason) == ("rolled_back", drive.finish.reason)


def test_what_one_has_cut_that_ended_after_done_was_said_is_news() -> None:
    """The last line was said without it; while it is only that another one asks again, the line of its end says so."""
    drive = left_to_drain(cut="daphne stops at once on TERM")
    drive.after(1.31)
    assert drive.finish.exit is ExitStatus.OK
    why = "2 requests were cut: daphne stops at once on TERM"
    stop, news = drive.feed(Gone(11, "exited with status 0", Cost(cut=2)))
    assert isinstance(stop, Report)
    assert isinstance(news, Report)
    assert (stop.step, stop.reason) == ("stop", why)
    assert (news.step, news.reason) == ("failed", f"when web:1 (pid 11) ended, {why}")
    assert drive.rollout.cost == Cost(2, cause="daphne stops at once on TERM")
    drive = left_to_drain()
    drive.after(1.31)
    assert [one.step for one in drive.feed(Gone(11, cost=Cost(met=1))) if isinstance(one, Report)] == ["stop"]


def test_each_of_several_that_drain_has_a_cost_of_its_own() -> None:
    """Also in the record: the next broker knows why one was cut, and what the other has cost."""
    drive = Drive(overlapping(drain="it would die", drain_timeout=20.0, cut="it would")).to_drain(NEW[0])
    drive.to_drain(NEW[1])
    assert [drive.rollout.is_replaced(pid) for pid in (11, 12, 13, 21)] == [True, True, False, False]
    drive.feed(Drained("nothing left", 12))
    drive.after(20.0)
    drive.feed(Gone(12, "exited with status 0", Cost(cut=1)))
    drive.restart()
    drive.feed(Gone(11, "exited with status 0", Cost(cut=2)), Settled(), Settled())
    stops = [(one.process, one.reason) for one in drive.effects if isinstance(one, Report) and one.step == "stop"]
    assert stops == [
        (FOUR[0], "2 requests were cut: they took longer than drain_timeout, 20 s"),
        (FOUR[1], "1 request was cut: it would"),
    ]
    assert drive.rollout.cost is not None
    assert drive.rollout.cost.cut == 3


def test_cause_of_a_cut_is_that_of_the_reload_that_replaced_it() -> None:
    """The next one may end its own old processes in another way; a broker that is killed meanwhile forgets nothing."""
    drive = Drive(plan()._replace(cut="daphne stops at once on TERM")).to_drain()
    drive.feed(Settled())
    drive.hurry()
    leaving = drive.rollout.supersede(drive.now)
    later = Drive(plan((NEW[0],))._replace(max_draining=2, cut="they came after the last look"), leaving=leaving)
    later.feed(Started(NEW[1]))
    later.restart()
    later.feed(Settled(), Gone(11, "exited with status 0", Cost(cut=1)))
    assert later.rollout.cost == Cost(cut=1, cause="daphne stops at once on TERM")


def test_connections_that_the_next_reload_cut_short_are_not_said_to_have_been_slow() -> None:
    """They were to be handed over, and there was no time for it."""
    drive = Drive(handing()).to_drain()
    drive.hurry()
    later = Drive(handing()._replace(old=(NEW[0],), max_draining=2), leaving=drive.rollout.supersede(drive.now))
    later.feed(Started(NEW[1]))
    later.after(2.0)
    later.feed(Settled())
    stop = later.feed(Gone(11, "exited with status 0", Cost(cut=1)))[0]
    assert isinstance(stop, Report)
    assert stop.reason == "1 request was cut: the next reload came before it had handed its connections over"


def test_crash_of_an_old_process_before_the_switch_is_no_cost_of_the_reload() -> None:
    """It was not stopped by it."""
    drive = Drive(plan()).to_hold()
    drive.feed(Gone(11, "was killed by signal 11", Cost(cut=3)))
    drive.after(1.0)
    drive.feed(Settled(), Settled())
    assert drive.finish == Finish("ok", ExitStatus.OK, "")


def test_processes_are_replaced_one_by_one_when_there_are_several() -> None:
    """With one that may drain, the next process is begun when the one before it has ended, and not before."""
    drive = Drive(plan(OLD)).to_drain()
    assert drive.feed(Settled()) == []
    assert drive.feed(Gone(11))[-1] == Start(1, beside=12)
    drive.to_drain(NEW[1])
    assert drive.effects[-1] == Settle(retire=(12,), known=(21, 22), size=2, kill=False, turn=1)
    drive.feed(Gone(12), Settled())
    assert drive.finish.exit is ExitStatus.OK


@pytest.mark.parametrize("stage", ["to_warm", "to_hold", "to_switch", "to_quiesce"])
def test_old_process_is_resumed_when_the_new_one_dies_before_drain(stage: str) -> None:
    """A failure before the stop signal gives the old process its registration back, kills the new one, and says why."""
    drive = Drive(plan())
    getattr(drive, stage)()
    drive.feed(Gone(21, "exited with status 1"))
    assert drive.effects[-2:] == [Resume(11), Settle(retire=(21,), known=(11,), size=1, kill=True, patience=10.0)]
    drive.feed(Settled())
    assert drive.steps[-2:] == ["failed", "rolled_back"]
    assert drive.finish == Finish("rolled_back", ExitStatus.ROLLED_BACK, "web:3 (pid 21) exited with status 1")


def test_new_process_that_is_given_up_may_finish_what_it_has_accepted() -> None:
    """The old one is resumed before anything, the new one takes no more, and its stop signal comes before SIGKILL."""
    for stage, state in (("to_warm", "warm"), ("to_hold", "hold"), ("to_verify", "verify")):
        drive = Drive(careful()._replace(stop_timeout=4.0))
        getattr(drive, stage)()
        assert drive.state.value == state
        given_up = [Resume(11), HoldBack(21), Settle(retire=(21,), known=(11,), size=1, kill=True, patience=4.0)]
        assert drive.feed(Cancelled("interrupted"))[1:] == given_up
        assert drive.rollout.suspends == {21}
        assert drive.restart() == given_up
        assert drive.feed(Settled()) == []
        assert drive.after(13.9) == []
        drive.feed(Gone(21))
        assert drive.finish.exit is ExitStatus.ROLLED_BACK
        assert not drive.rollout.suspends


def test_rollback_ends_only_when_the_new_process_is_gone() -> None:
    """The command is not told "rolled back" while two generations are there."""
    drive = Drive(plan()).to_warm()
    drive.after(30.0)
    assert drive.feed(Settled()) == []
    drive.feed(Gone(21))
    assert drive.finish.exit is ExitStatus.TIMED_OUT
    assert drive.finish.reason == "web:3 (pid 21) was not ready within 30 s: no sign of its event registration of web"


def test_effects_are_equal_only_if_they_are_of_one_kind() -> None:
    """A test that compares effects must see what is to be done, not only to whom."""
    kinds = (HoldBack(11), Suspend(11), Resume(11), Verify(11), Drain(11))
    assert len(set(kinds)) == len(kinds)
    assert Suspend(11) == Suspend(11)


def test_readiness_is_not_believed_before_the_hold_has_passed() -> None:
    """READY alone switches nothing."""
    drive = Drive(plan()).to_hold()
    assert drive.after(0.99) == []
    assert drive.after(0.02)[-1] == Suspend(11)


def test_ready_of_another_process_changes_nothing() -> None:
    """Only the process that this turn has started can be what is waited for."""
    drive = Drive(plan()).to_warm()
    assert drive.feed(Ready(12, "notify")) == []
    assert drive.state is State.WARM


def test_nothing_is_started_when_the_program_has_no_process() -> None:
    """There is nothing to reload in a stopped program."""
    drive = Drive(plan(()))
    assert drive.finish.exit is ExitStatus.INTERNAL
    assert not any(isinstance(effect, Start) for effect in drive.effects)


def test_reload_fails_with_nothing_changed_when_the_manager_starts_nothing() -> None:
    """A manager that refuses to start one is an error of the manager."""
    drive = Drive(plan())
    drive.feed(StartRefused("can't start web: circusd says no"))
    assert drive.finish == Finish("failed", ExitStatus.INTERNAL, "can't start web: circusd says no")


def test_reload_says_how_far_it_came_when_a_later_process_fails() -> None:
    """With some processes replaced, the failure of the next one is no clean rollback, and the reason says so."""
    drive = Drive(plan(OLD)).to_drain()
    drive.feed(Settled(), Gone(11), StartRefused("can't start web: busy"))
    drive.feed(Settled())
    assert drive.finish.exit is ExitStatus.ROLLED_BACK
    assert drive.finish.reason == "can't start web: busy; 1 of 2 processes run the new version already"


@pytest.mark.parametrize("stage", ["to_warm", "to_hold", "to_switch", None])
def test_cancel_undoes_before_the_switch_is_done(stage: str | None) -> None:
    """Ctrl-C during start..switch rolls back."""
    drive = Drive(plan())
    if stage:
        getattr(drive, stage)()
    drive.feed(Cancelled("interrupted"), Settled(), Gone(21))
    assert drive.finish == Finish("rolled_back", ExitStatus.ROLLED_BACK, "interrupted")


@pytest.mark.parametrize("stage", ["to_quiesce", "to_drain"])
def test_cancel_changes_nothing_once_the_new_process_has_taken_over(stage: str) -> None:
    """After the switch a reload is finished, whoever loses interest."""
    drive = Drive(plan())
    getattr(drive, stage)()
    assert drive.feed(Cancelled("interrupted")) == []


@pytest.mark.parametrize("stage", [None, "to_warm", "to_hold"])
def test_reload_is_undone_when_its_own_timeout_passes_before_the_switch(stage: str | None) -> None:
    """--timeout bounds what has not happened yet."""
    drive = Drive(plan(expires=100.5))
    if stage:
        getattr(drive, stage)()
    drive.after(0.6)
    drive.feed(Settled(), Gone(21))
    assert drive.finish.exit is ExitStatus.TIMED_OUT


def test_no_further_process_is_begun_after_the_timeout() -> None:
    """A turn that has switched is finished; the next one is not begun."""
    drive = Drive(plan(OLD, expires=103.0)).to_drain()
    drive.after(5.0)
    drive.feed(Settled(), Gone(11))
    assert drive.finish.exit is ExitStatus.TIMED_OUT
    assert [effect for effect in drive.effects if isinstance(effect, Start)] == [Start(0, beside=11)]


@pytest.mark.parametrize("stage", ["to_switch", "to_quiesce"])
def test_drain_is_skipped_to_when_the_old_process_dies_after_the_hold(stage: str) -> None:
    """An old process that died by itself needs no stop signal; what the manager respawned for it is one too many."""
    drive = Drive(plan())
    getattr(drive, stage)()
    drive.feed(Gone(11))
    assert drive.effects[-1] == Settle(retire=(), known=(11, 21), size=1, kill=False)
    drive.feed(Settled())
    assert drive.finish.exit is ExitStatus.OK


def test_switch_is_skipped_when_the_old_process_died_while_the_new_one_warmed() -> None:
    """Nothing is suspended in a process that is gone."""
    drive = Drive(plan()).to_warm()
    drive.feed(Gone(11), Ready(21, "notify"))
    drive.after(1.0)
    assert not [effect for effect in drive.effects if isinstance(effect, Suspend)]
    drive.feed(Settled(), Settled())  # that its place is the new one's, and then that the old one is gone
    assert drive.finish.exit is ExitStatus.OK


def test_waiting_process_that_dies_is_not_replaced_again() -> None:
    """The manager starts it anew with the new version, so its turn is over."""
    drive = Drive(plan(OLD)).to_warm()
    drive.feed(Gone(12), Ready(21, "notify"))
    drive.after(1.0)
    drive.feed(Switched(""))
    drive.after(0.3)
    drive.feed(Settled(), Gone(11))
    assert drive.finish.exit is ExitStatus.OK


def lost_in_stop() -> Drive:
    """The new process died after the old one's stop signal, and the old one has ended."""
    drive = Drive(plan()).to_drain()
    drive.feed(Settled(), Gone(21, "was killed by signal 9"), Gone(11))
    return drive


def test_next_process_of_the_manager_takes_the_place_of_a_new_one_that_died_when_there_is_no_way_back() -> None:
    """It has to show all that the one before it showed; then the turn ends as it would have."""
    drive = lost_in_stop()
    assert drive.effects[-2:] == [Settle(retire=(), known=(11, 21), size=1, kill=False), Find(known=(11, 21))]
    assert not drive.rollout.awaited
    drive.feed(Settled(), Started(NEW[1]))
    assert drive.rollout.awaited == [NEW[1]]
    assert drive.feed(Ready(21, "registration")) == []
    assert HoldBack(22) not in drive.feed(Ready(22, "registration"))
    assert not drive.rollout.suspends
    drive.after(1.0)
    drive.feed(Settled())
    assert drive.finish == Finish("ok", ExitStatus.OK, "")
    assert drive.steps == "start ready hold switch quiesce drain stop start ready hold done".split()
    reason = [effect.reason for effect in drive.effects if isinstance(effect, Report) and effect.step == "start"][-1]
    assert reason == "in its place: web:3 (pid 21) was killed by signal 9"


def test_next_process_is_begun_after_a_turn_whose_new_process_was_replaced() -> None:
    """A death is made up for within its turn, and means nothing to the next."""
    drive = Drive(plan(OLD)).to_drain()
    drive.feed(Settled(), Gone(21), Gone(11), Started(NEW[1]), Ready(22, "registration"))
    drive.after(1.0)
    drive.feed(Settled())  # of its death; then of the end of the turn
    assert drive.feed(Settled()) == [Start(1, beside=12)]
    third = Process(23, "web:5")
    drive.to_drain(third).feed(Settled())
    assert drive.feed(Gone(12))[0] == Report("stop", OLD[1], 3.6)
    assert drive.finish.exit is ExitStatus.OK


def test_reload_says_so_when_no_other_process_becomes_ready() -> None:
    """One that keeps crashing is waited for as long as one that hangs: `ready_timeout`, from the first death on."""
    drive = lost_in_stop()
    drive.feed(Started(NEW[1]))
    assert drive.feed(Gone(22, "exited with status 1")) == [Find(known=(11, 22))]
    assert drive.feed(Gone(22), Gone(99)) == []
    assert drive.after(20.0) == []
    drive.feed(Started(Process(23, "web:5")), Ready(23, "registration"))
    assert drive.feed(Gone(23, "exited with status 2"))[-1] == Find(known=(11, 23))
    drive.after(10.0)
    assert drive.finish.exit is ExitStatus.NOT_SERVING
    assert drive.finish.reason == (
        "web:5 (pid 23) exited with status 2, with no old process to go back to; no other one was ready within 30 s"
    )


def test_reload_says_so_when_the_manager_starts_no_other_process() -> None:
    """It does not, if the program was stopped meanwhile."""
    drive = lost_in_stop()
    drive.feed(StartRefused("web is stopped"))
    assert drive.finish.exit is ExitStatus.NOT_SERVING
    assert drive.finish.reason.endswith("; web is stopped")


def test_broker_killed_while_another_process_is_waited_for_goes_on() -> None:
    """Whether it had found one or not."""
    drive = lost_in_stop()
    assert drive.restart() == [Find(known=(11, 21))]
    drive.feed(Started(NEW[1]))
    assert drive.restart() == []
    assert drive.rollout.awaited == [NEW[1]]
    drive.feed(Ready(22, "registration"))
    assert drive.restart() == []
    assert drive.state is State.WARM
    assert drive.feed(Gone(22))[-1] == Find(known=(11, 22))


def test_new_process_has_the_place_of_an_old_one_that_died_before_the_switch() -> None:
    """The manager is told at once, or it would start another one; and there is nothing left to undo."""
    place = Settle(retire=(), known=(11, 21), size=1, kill=False)
    drive = Drive(plan())
    assert drive.feed(Gone(11)) == []
    assert drive.feed(Started(NEW[0]))[-1] == place
    drive = Drive(plan()).to_warm()
    assert drive.feed(Gone(11)) == [Resume(21), place]
    assert drive.restart() == [place]  # what the manager answered went to the broker before
    assert drive.feed(Settled()) == []
    assert drive.restart() == []
    assert drive.feed(Gone(21))[-1] == Find(known=(11, 21))
    for stage in ("to_warm", "to_hold"):
        drive = Drive(plan())
        getattr(drive, stage)()
        drive.feed(Gone(11), Cancelled("interrupted"))
        assert drive.feed(Settled()) == [place]  # it is asked once more: what it was asked was another question
        drive.feed(Settled())
        assert drive.finish.exit is ExitStatus.NOT_SERVING
        assert (
            drive.finish.reason == "interrupted; and web:1 (pid 11) has died meanwhile, so that the new process stays"
        )


def test_silent_manager_is_asked_again_and_the_command_is_told_of_it() -> None:
    """What it may have done can't be taken back, and what it may not have done is not forgotten."""
    drive = Drive(plan(OLD)).to_drain()
    stop = Settle(retire=(11,), known=(12, 21), size=2, kill=False)
    silent = SettleRefused("circusd did not answer within 5 s", silent=True)
    assert drive.feed(silent) == [stop]
    assert drive.after(9.9) == []
    assert drive.feed(silent) == [stop]
    drive.after(0.2)
    assert drive.finish.exit is ExitStatus.INTERNAL
    assert drive.finish.reason == (
        "circusd did not answer within 5 s; the new process serves, and the old one is stopped as soon as it does"
    )
    assert drive.rollout.answered
    assert drive.state is State.STOP
    assert drive.restart() == [stop]
    assert drive.after(50.0) == []  # it was told once
    assert drive.feed(silent) == [stop]
    assert drive.rollout.deadline is None
    drive.feed(Settled())
    assert drive.feed(Gone(11)) == [Report("stop", OLD[0], 61.4)]
    assert drive.state.value == "ended"
    assert drive.finish.exit is ExitStatus.INTERNAL


def test_silent_manager_does_not_keep_what_it_may_have_started() -> None:
    """A start without an answer may have happened."""
    drive = Drive(plan())
    undo = Settle(retire=(), known=(11,), size=1, kill=True, patience=10.0)
    silent = SettleRefused("no answer", silent=True)
    assert drive.feed(StartRefused("no answer", silent=True))[-1] == undo
    assert drive.feed(silent) == [undo]
    assert drive.after(9.9) == []
    drive.after(0.2)
    assert drive.finish.exit is ExitStatus.INTERNAL
    assert "the old process serves" in drive.finish.reason
    assert drive.state is State.UNDO
    assert drive.feed(silent) == [undo]
    assert drive.feed(Settled()) == []
    assert drive.state.value == "ended"


def test_command_is_told_once_of_a_silent_manager() -> None:
    """Also when it then refuses, and is silent again when it is asked to undo all."""
    drive = Drive(plan(OLD)).to_drain()
    drive.feed(SettleRefused("circusd did not answer within 5 s", silent=True))
    drive.after(10.1)
    assert drive.rollout.answered
    drive.feed(SettleRefused("can't settle web: busy"))
    assert drive.state is State.UNDO
    assert drive.after(60.0) == []
    assert drive.rollout.deadline is None


def test_reload_of_a_program_that_is_stopped_meanwhile_says_so() -> None:
    """Neither the old process serves nor the new one."""
    drive = Drive(plan()).to_warm()
    drive.feed(Gone(21), Settled(stopped=True))
    assert drive.finish == Finish("failed", ExitStatus.NOT_SERVING, "web was stopped meanwhile")
    drive = Drive(plan()).to_drain()
    drive.feed(Settled(stopped=True))
    assert drive.finish == Finish("failed", ExitStatus.NOT_SERVING, "web was stopped meanwhile")


def test_old_process_takes_over_again_when_the_manager_will_not_stop_it() -> None:
    """What is not told to stop is resumed."""
    drive = Drive(plan()).to_drain()
    effects = drive.feed(SettleRefused("can't settle web: busy"))
    assert Resume(11) in effects
    drive.feed(Settled(), Gone(21))
    assert drive.finish == Finish("rolled_back", ExitStatus.INTERNAL, "can't settle web: busy")


def test_reload_is_given_up_when_the_old_process_never_ends() -> None:
    """The manager kills it at its own time-out; ten seconds later something is wrong with the manager."""
    drive = Drive(plan()).to_drain()
    drive.feed(Settled())
    drive.after(39.9)
    assert drive.state is State.STOP
    said = drive.after(0.2)
    assert said == [Report("failed", NEW[0], 41.4, "web:1 (pid 11) has not ended 40 s after its stop signal")]
    assert drive.state.value == "ended"


def test_failed_rollback_is_reported_as_such() -> None:
    """Neither a manager that refuses nor a process that does not end is hidden."""
    drive = Drive(plan()).to_warm()
    drive.feed(Gone(21), SettleRefused("no answer"))
    assert drive.finish.reason == "web:3 (pid 21) it died; and can't roll back: no answer"
    drive = Drive(plan()).to_warm()
    drive.feed(Cancelled("interrupted"), Settled())
    assert drive.after(19.9) == []
    drive.after(0.2)
    assert drive.finish.reason == "interrupted; and can't roll back: the new process has not ended"


def test_broker_killed_before_the_switch_leaves_the_old_process() -> None:
    """A half-done reload is undone if the switch had not happened."""
    for stage in (None, "to_warm", "to_hold"):
        drive = Drive(plan())
        if stage:
            getattr(drive, stage)()
        effects = drive.restart()
        assert Resume(11) in effects
        drive.feed(Settled(), Gone(21))
        assert drive.finish.exit is ExitStatus.ROLLED_BACK


def test_broker_killed_after_the_switch_finishes() -> None:
    """A half-done reload is finished if the switch had happened."""
    drive = Drive(plan()).to_switch()
    assert drive.restart() == [Resume(21), Suspend(11)]
    drive.feed(Switched("suspended"))
    assert drive.restart() == [Suspend(11)]
    drive.after(0.3)
    assert drive.restart()[-1] == Settle(retire=(11,), known=(21,), size=1, kill=False)
    drive.feed(Settled(), Gone(11))
    assert drive.finish.exit is ExitStatus.OK


def test_new_process_is_held_back_from_its_registration_to_the_switch() -> None:
    """What waits for connections is held back at once, though not ready, and let go just before the old one is
    suspended."""
    drive = Drive(plan()).to_warm()
    assert drive.feed(Registered(21)) == [HoldBack(21)]
    assert drive.feed(Registered(21)) == [HoldBack(21)]  # it has forked another worker
    assert drive.feed(Registered(22)) == []
    assert drive.rollout.suspends == {21}
    assert drive.feed(Ready(21, "registration"))[0] == HoldBack(21)
    assert drive.rollout.suspends == {21}
    assert drive.after(1.0)[-2:] == [Resume(21), Suspend(11)]


@pytest.mark.parametrize("stage", ["to_switch", "to_verify", "to_drain_from_outside"])
def test_new_process_serves_when_the_old_one_dies_after_the_hold(stage: str) -> None:
    """While its page has not answered the new one is suspended, and nobody else would resume it."""
    drive = Drive(careful())
    getattr(drive, stage)()
    assert drive.feed(Gone(11))[0] == Resume(21)


def test_new_process_is_let_go_when_the_old_one_dies_during_the_hold() -> None:
    """Better an unproven process than none."""
    drive = Drive(plan()).to_hold()
    assert drive.feed(Gone(11))[0] == Resume(21)
    assert not drive.rollout.suspends
    drive = Drive(plan()).to_warm()
    drive.feed(Registered(21))
    assert drive.feed(Gone(11))[0] == Resume(21)
    assert drive.feed(Registered(21)) == []
    assert HoldBack(21) not in drive.feed(Ready(21, "registration"))


def test_page_must_answer_before_the_old_process_is_given_up() -> None:
    """With `verify` the switch is followed by the question, and the answer by the rest."""
    drive = Drive(careful()).to_verify()
    assert drive.state.value == "verify"
    assert drive.effects[-1] == Verify(21)
    drive.feed(Verified("200 from pid 21"))
    assert drive.state.value == "quiesce"
    assert next(effect.reason for effect in drive.after(0.3) if isinstance(effect, Report)) == "200 from pid 21"


def test_old_process_is_resumed_when_the_page_does_not_answer_as_it_has_to() -> None:
    """An answer that is wrong is a failure of the new version; none at all is a time-out."""
    drive = Drive(careful()).to_verify()
    assert Resume(11) in drive.feed(VerifyFailed("http:/health answered 500"))
    drive.feed(Settled(), Gone(21))
    assert drive.finish == Finish("rolled_back", ExitStatus.ROLLED_BACK, "http:/health answered 500")
    drive = Drive(careful()).to_verify()
    assert drive.after(29.0) == []
    assert Resume(11) in drive.after(1.0)
    drive.feed(Settled(), Gone(21))
    assert drive.finish.exit is ExitStatus.TIMED_OUT


def test_connections_are_ended_from_outside_when_the_stop_signal_would_kill() -> None:
    """The stop signal comes when nothing is left that it could destroy."""
    drive = Drive(careful()).to_drain_from_outside()
    assert drive.effects[-1] == Drain(11)
    assert drive.feed(Drained("no connection left"))[-1] == Settle(retire=(11,), known=(21,), size=1, kill=False)


@pytest.mark.parametrize(
    ("what", "successor", "said"),
    [
        (plan(), NEW[0], "it hands its connections to web:3 (pid 21)"),
        (plan()._replace(alone=True), None, "it hands its connections to the others"),
    ],
)
def test_connections_are_handed_over_where_the_program_takes_them(
    what: Plan, successor: Process | None, said: str
) -> None:
    """To the process that comes in its place, or to whom there is."""
    drive = Drive(what._replace(drain="its program takes them", drain_timeout=20.0, hand_over=True))
    if successor is None:
        drive.feed(Switched("suspended"))
        drive.after(0.3)
    else:
        drive.to_drain()
    assert drive.effects[-2:] == [Report("drain", OLD[0], round(drive.now - 100.0, 3), said), HandOver(11, successor)]
    drive.feed(Drained("2 handed over"))
    assert drive.state is State.STOP


def test_stop_signal_comes_anyway_when_the_drain_takes_too_long() -> None:
    """`drain_timeout` bounds the patience with the old process's clients."""
    drive = Drive(careful()).to_drain_from_outside()
    drive.after(19.9)
    assert drive.state is State.DRAIN
    assert drive.after(0.2)[-1] == Settle(retire=(11,), known=(21,), size=1, kill=False)


def test_old_process_is_resumed_when_the_new_one_dies_during_the_drain() -> None:
    """Until its stop signal the old process is whole."""
    drive = Drive(careful()).to_drain_from_outside()
    assert Resume(11) in drive.feed(Gone(21))


def test_broker_killed_while_verifying_or_draining_goes_on() -> None:
    """Both may be done again from the start."""
    drive = Drive(careful()).to_verify()
    assert drive.restart() == [Resume(21), Suspend(11), Verify(21)]
    assert drive.feed(Switched("")) == []
    drive.feed(Verified("200"))
    drive.after(0.3)
    assert drive.restart() == [Suspend(11), TakePlace(11, 21), Drain(11)]
    assert drive.feed(Gone(11))[-1] == Settle(retire=(), known=(11, 21), size=1, kill=False)


def handing() -> Plan:
    return plan()._replace(drain="its section says so", drain_timeout=20.0, hand_over=True)


def test_old_process_hands_its_connections_to_the_new_one_where_that_is_asked_for() -> None:
    """The drain ends when it says that it has; the next broker asks it again."""
    drive = Drive(handing()).to_drain()
    assert drive.state is State.DRAIN
    assert drive.effects[-1] == HandOver(11, NEW[0])
    assert drive.restart() == [Suspend(11), TakePlace(11, 21), HandOver(11, NEW[0])]
    assert drive.feed(Drained("it has"))[-1] == Settle(retire=(11,), known=(21,), size=1, kill=False)


def test_old_process_stays_when_its_successor_dies_while_it_hands_over() -> None:
    """What it has not handed over it goes on with."""
    assert Resume(11) in Drive(handing()).to_drain().feed(Gone(21))


def test_old_process_without_a_successor_hands_over_to_whom_it_likes() -> None:
    """Where nothing comes in its place its siblings are there."""
    drive = Drive(handing()._replace(alone=True))
    drive.feed(Switched("suspended"))
    drive.after(0.3)
    assert drive.effects[-1] == HandOver(11, None)


def test_broker_killed_in_a_later_turn_goes_on() -> None:
    """With one process replaced already the switch had happened: the rest follows."""
    drive = Drive(plan(OLD)).to_drain()
    drive.feed(Settled(), Gone(11))
    effects = drive.restart()
    assert effects == [Settle(retire=(), known=(12, 21), size=2, kill=True, patience=10.0, turn=1)]
    assert drive.feed(Settled()) == [Start(1, beside=12)]
    assert drive.feed(Settled()) == []
    drive.to_hold(NEW[1])
    assert drive.restart() == []
    assert drive.state is State.WARM
    drive.feed(Ready(22, "registration"))
    drive.after(1.0)
    drive.feed(Switched(""))
    drive.after(0.3)
    drive.feed(Settled(), Gone(12))
    assert drive.finish.exit is ExitStatus.OK


def test_broker_killed_while_undoing_goes_on_undoing() -> None:
    """Undoing may be done twice."""
    drive = Drive(plan()).to_warm()
    drive.feed(Gone(21))
    assert drive.restart() == [Resume(11), Settle(retire=(21,), known=(11,), size=1, kill=True, patience=10.0)]
    drive.feed(Gone(21), Settled())
    assert drive.finish.exit is ExitStatus.ROLLED_BACK


def test_undo_of_a_dead_old_process_resumes_nothing() -> None:
    """There is nobody to resume."""
    drive = Drive(plan())
    drive.feed(Gone(11))
    assert drive.feed(Cancelled("interrupted"))[1:] == [
        Settle(retire=(), known=(11,), size=1, kill=True, patience=10.0)
    ]
    drive = Drive(plan()).to_warm()
    drive.feed(Cancelled("interrupted"), Gone(11), Gone(99), Settled(), Gone(21))
    assert drive.finish.exit is ExitStatus.NOT_SERVING
    assert drive.finish.reason == "interrupted; and web:1 (pid 11) has died meanwhile"


def test_new_process_is_held_back_from_what_only_some_may_have_until_the_switch() -> None:
    """From the moment that it is known, and not when there is nobody else."""
    drive = Drive(plan())
    assert drive.rollout.holds_back is None
    drive.to_warm()
    assert drive.rollout.holds_back == 21
    drive.feed(Ready(21, "registration"))
    assert drive.rollout.holds_back == 21
    drive.after(1.0)
    assert drive.rollout.holds_back is None
    alone = Drive(plan()).to_warm()
    alone.feed(Gone(11))
    assert alone.rollout.holds_back is None


def test_claim_of_suspension_lasts_from_switch_to_stop() -> None:
    """`suspends` names the process whose registrations nobody else may resume, and nobody at other times."""
    drive = Drive(plan())
    assert not drive.rollout.suspends
    drive.to_switch()
    assert drive.rollout.suspends == {11}
    drive.feed(Gone(21), Settled())
    assert not drive.rollout.suspends


def test_death_of_a_stranger_changes_nothing() -> None:
    """A reload minds its own processes."""
    for stage in ("to_warm", "to_hold", "to_quiesce", "to_drain"):
        drive = Drive(plan())
        getattr(drive, stage)()
        assert drive.feed(Gone(99)) == []


def test_quiesce_lasts_as_long_as_it_is_to() -> None:
    """What the old process has accepted, it gets the time to read."""
    drive = Drive(plan()).to_quiesce()
    assert drive.after(0.2) == []
    assert drive.after(0.11) != []


FOUR = tuple(Process(11 + number, f"web:{1 + number}") for number in range(4))
NEXT = tuple(Process(21 + number, f"web:{5 + number}") for number in range(4))


def overlapping(most: int = 2, **keys: Any) -> Plan:
    """Four processes, of which *most* may drain at once."""
    return plan(FOUR)._replace(max_draining=most, **keys)


def left_to_drain(**keys: Any) -> Drive:
    """All four are replaced; the first has a long request in hand, the others have ended."""
    drive = Drive(overlapping(**keys))
    for number, (old, new) in enumerate(zip(FOUR, NEXT, strict=True)):
        drive.to_drain(new).feed(Settled())
        if number:
            drive.feed(Gone(old.pid))
    return drive


def test_next_process_starts_while_the_one_before_drains() -> None:
    """While fewer than `max_draining` do; then it waits for one of them to end."""
    drive = Drive(overlapping()).to_drain(NEXT[0])
    assert drive.feed(Settled()) == [Start(1, beside=12)]
    drive.to_drain(NEXT[1])
    assert drive.effects[-1] == Settle((12,), (11, 13, 14, 21, 22), 4, kill=False, turn=1)
    assert drive.feed(Settled()) == []
    assert drive.rollout.draining == [FOUR[0], FOUR[1]]
    assert drive.rollout.suspends == {11, 12}
    assert drive.feed(Gone(12)) == [Report("stop", FOUR[1], 2.6), Start(2, beside=13)]


def test_deploy_is_done_when_all_new_ones_serve_and_an_old_one_drains() -> None:
    """A long request holds nobody up: the command waits for a moment, and says who has yet to end, and how long."""
    drive = left_to_drain()
    assert drive.after(0.99) == []
    assert drive.rollout.deadline == pytest.approx(drive.now + 0.31)
    reason = "web:1 (pid 11) takes nothing new, and has up to 30 s to finish what it has"
    took = round(drive.now + 0.32 - 100.0, 3)
    said = drive.after(0.32)
    assert said == [Report("done", NEXT[3], took, reason), Finish("ok", ExitStatus.OK, reason)]
    assert drive.state is State.STOP
    assert [effect.step for effect in drive.feed(Gone(11)) if isinstance(effect, Report)] == ["stop"]
    assert drive.state.value == "ended"
    assert drive.rollout.deadline is None


def test_command_waits_for_one_process_that_drains_as_long_as_for_all_of_several() -> None:
    """It can say then what became of it."""
    drive = Drive(plan()).to_drain()
    drive.feed(Settled())
    assert drive.after(3.99) == []
    drive.feed(Gone(11))
    assert drive.finish == Finish("ok", ExitStatus.OK, "")


def test_broker_killed_while_several_drain_goes_on_with_each() -> None:
    """The journal carries all of them, and the turn in front."""
    drive = Drive(overlapping(most=3, drain="it would die", drain_timeout=20.0)).to_drain(NEXT[0])
    drive.to_drain(NEXT[1]).to_warm(NEXT[2])
    assert drive.restart() == [
        *(Suspend(11), TakePlace(11, 21), Drain(11)),
        *(Suspend(12), TakePlace(12, 22), Drain(12)),
    ]
    assert drive.state is State.WARM
    assert drive.rollout.awaited == [NEXT[2]]
    drive.feed(Drained("nothing left", 12))
    assert drive.effects[-1] == Settle((12,), (11, 13, 14, 21, 22, 23), 6, kill=False, turn=1)


def test_broker_killed_after_the_answer_says_it_once() -> None:
    """What drains is drained to its end by the next one."""
    drive = left_to_drain()
    drive.after(4.0)
    assert drive.finish.exit is ExitStatus.OK
    assert drive.restart() == [Settle((11,), (22, 23, 24, 21), 4, kill=False)]
    drive.feed(Settled(), Gone(11))
    assert drive.state is State.ENDED
    assert drive.finish.exit is ExitStatus.OK


def test_record_of_the_version_before_is_taken_up() -> None:
    """It has one turn at a time, in the fields that are still there; what came later is left out."""
    later = {"turns", "added", "served", "notes", "size"}
    for stage in ("to_switch", "to_drain"):
        drive = Drive(plan(OLD)._replace(drain="it would die", drain_timeout=20.0))
        getattr(drive, stage)()
        record = {key: value for key, value in drive.rollout.record().items() if key not in later}
        found, effects = Rollout.recover(json.loads(json.dumps(record)), drive.now)
        assert (found.state, found.old, found.newcomer) == (drive.state, OLD[0], NEW[0])
        assert Suspend(11) in effects
        assert found.processes == [OLD[1], OLD[0], NEW[0]]


def test_version_before_keeps_those_that_serve_already() -> None:
    """Its broker knows of one turn: the new ones of those that drain beside it are none that it may have stopped."""
    drive = Drive(overlapping(drain="it would die", drain_timeout=20.0)).to_drain(NEXT[0]).to_warm(NEXT[1])
    record = drive.rollout.record()
    assert record["replaced"] == [list(NEXT[0])]
    assert record["newcomer"] == list(NEXT[1])
    drive.restart()
    assert drive.rollout.record() == record


def test_manager_has_one_question_at_a_time() -> None:
    """Each says how many processes there are to be: two at once would contradict each other."""
    drive = Drive(overlapping(drain="it would die", drain_timeout=20.0)).to_drain(NEXT[0])
    assert drive.effects[-1] == Start(1, beside=12)
    assert not [one for one in drive.feed(Drained("nothing left", 11)) if isinstance(one, Settle)]
    assert drive.feed(Started(NEXT[1]))[-1] == Settle((11,), (12, 13, 14, 21, 22), 5, kill=False)


def test_failure_with_nothing_to_undo_stays_one_when_the_broker_is_replaced() -> None:
    """What another turn undoes meanwhile doesn't make it a reload that was rolled back; who failed is known still."""
    drive = Drive(overlapping()).to_drain(NEXT[0])
    drive.feed(Settled())
    drive.to_warm(NEXT[1])
    drive.after(30.5)
    drive.after(10.5)
    assert drive.state is State.UNDO
    drive.restart()
    drive.feed(Settled(), Gone(22))
    assert (drive.finish.result, drive.finish.exit) == ("failed", ExitStatus.TIMED_OUT)
    [report] = [one for one in drive.effects if isinstance(one, Report) and one.step == "failed"][-1:]
    assert report.process == NEXT[0]


def test_what_is_left_is_told_once_though_the_broker_was_replaced() -> None:
    """The next broker knows what the command was told."""
    drive = sweeping_while_one_drains()
    drive.feed(Swept(left="pid 9 (nc)"))
    drive.restart()
    drive.feed(Settled(), Gone(11))
    assert drive.feed(Swept(left="pid 9 (nc)")) == []
    assert drive.state is State.ENDED


def test_what_a_killed_broker_ended_of_what_was_left_over_has_cost_what_nobody_saw() -> None:
    """The next one finds it gone, and can't say that nothing was cut."""
    drive = to_sweep()
    assert drive.restart() == [Sweep()]
    drive.feed(Swept())
    assert drive.finish.reason.startswith("can't see whether requests were cut: the broker was replaced")


def test_old_process_that_drains_serves_again_when_its_successor_dies() -> None:
    """It is whole until its stop signal; the version has failed, so what is in front is undone too."""
    drive = Drive(overlapping(drain="it would die", drain_timeout=20.0)).to_drain(NEXT[0]).to_warm(NEXT[1])
    effects = drive.feed(Gone(21, "exited with status 1"))
    assert effects[1:] == [
        Resume(11),
        Settle((21,), (11, 12, 13, 14, 22), 5, kill=True, patience=10.0),
        *(Resume(12), HoldBack(22)),
    ]
    assert drive.feed(Settled()) == [Settle((22,), (11, 12, 13, 14, 21), 4, kill=True, patience=10.0, turn=1)]
    drive.feed(Settled(), Gone(22))
    reason = "web:5 (pid 21) exited with status 1"
    assert drive.finish == Finish("rolled_back", ExitStatus.ROLLED_BACK, reason)
    assert drive.state is State.ENDED


def test_failed_turn_leaves_what_drains_to_its_end() -> None:
    """The command is told when the turn is undone; the old process whose successor serves is not taken back."""
    drive = Drive(overlapping()).to_drain(NEXT[0])
    drive.feed(Settled())
    drive.to_warm(NEXT[1]).feed(Gone(22, "exited with status 1"), Settled())
    assert drive.finish.result == "rolled_back"
    assert drive.finish.reason.endswith("exited with status 1; 1 of 4 processes run the new version already")
    assert drive.state is State.STOP
    drive.feed(Gone(11))
    assert drive.state.value == "ended"


def test_more_processes_are_started_where_the_configuration_has_places_for_more() -> None:
    """After the others, each proven as they are; it goes without one that it would replace."""
    drive = Drive(plan()._replace(size=2, added=1)).to_drain()
    drive.feed(Settled())
    assert drive.feed(Gone(11))[-1] == Start(1, beside=None)
    drive.to_hold(NEW[1])
    assert drive.after(1.0)[1:] == [
        *(Resume(22), TakePlace(None, 22)),
        Settle((), (21, 22), 2, kill=False, turn=1),
    ]
    drive.feed(Settled())
    assert drive.finish.exit is ExitStatus.OK


def test_places_are_filled_where_no_process_runs() -> None:
    """Those that the configuration has had from the start are the manager's to fill, again and again."""
    drive = Drive(plan(())._replace(size=2, added=1))
    assert drive.effects == [Start(0, beside=None)]
    drive.to_switch()
    drive.feed(Settled())
    assert drive.finish == Finish("ok", ExitStatus.OK, "")


def test_surplus_process_is_drained_and_nothing_comes_in_its_place() -> None:
    """After the others have been replaced, and without a question for a page."""
    drive = Drive(careful(OLD)._replace(size=1, surplus=(11,)))
    assert drive.effects == [Start(0, beside=12)]
    drive.to_drain_from_outside().feed(Drained("nothing left"), Settled())
    assert drive.feed(Gone(12))[-1] == Suspend(11)
    drive.feed(Switched("suspended"))
    assert drive.after(0.3)[1:2] == [TakePlace(11, None)]
    assert drive.effects[-1] == Drain(11)
    assert drive.feed(Drained("nothing left"))[-1] == Settle((11,), (21,), 1, kill=False, turn=1)
    drive.feed(Settled(), Gone(11))
    assert drive.finish.exit is ExitStatus.OK


def test_next_reload_takes_over_what_only_drains() -> None:
    """The command before is told as soon as it is asked for; who drains is nobody's to go back to any more."""
    drive = left_to_drain()
    assert drive.rollout.only_drains
    drive.hurry()
    assert drive.finish.result == "ok"
    leaving = drive.rollout.supersede(drive.now)
    assert drive.state is State.ENDED
    later = Drive(overlapping()._replace(old=NEXT))
    later.rollout = Rollout(overlapping()._replace(old=NEXT), leaving)
    assert later.rollout.begin(drive.now) == [Start(1, beside=21)]
    assert later.rollout.suspends == {11}
    assert later.rollout.feed(Gone(11), drive.now) == [Report("stop", FOUR[0], 0.0)]


def test_reload_that_does_more_than_drain_is_not_superseded() -> None:
    """Neither one with a turn in front nor one whose manager has not answered."""
    drive = Drive(overlapping()).to_drain(NEXT[0])
    assert not drive.rollout.only_drains
    drive.feed(Settled())
    assert not drive.rollout.only_drains
    one = Drive(plan()).to_drain()
    assert not one.rollout.only_drains
    one.feed(Settled())
    assert one.rollout.only_drains


def test_process_that_its_manager_was_told_to_stop_is_not_replaced_nor_blamed() -> None:
    """Whoever told it meant it: nothing comes in its place, the others are replaced, and the last line says so."""
    drive = Drive(plan(OLD)).to_warm()
    assert drive.feed(Stopped(11)) == [HoldBack(21), Settle((21,), (11, 12), 2, kill=True, patience=10.0)]
    drive.feed(Gone(21, "was killed by signal 9"), Gone(11, "exited with status 0"))
    assert drive.feed(Settled()) == [Start(1, beside=12)]
    drive.to_drain(NEW[1]).feed(Settled(), Gone(12))
    assert drive.finish == Finish("ok", ExitStatus.OK, "web:1 (pid 11) was stopped by its manager meanwhile")


def test_old_process_that_somebody_has_stopped_while_it_drained_takes_nobody_with_it() -> None:
    """The new one has its place, and serves: it is not undone."""
    drive = Drive(plan()._replace(drain="it would die", drain_timeout=20.0)).to_drain()
    assert drive.feed(Stopped(11)) == []
    drive.feed(Gone(11, "was killed by signal 15"), Settled())
    assert drive.finish == Finish("ok", ExitStatus.OK, "")
    assert drive.rollout.suspends == frozenset()


def test_new_process_is_unproven_whichever_turn_asks() -> None:
    """While one drains another has yet to show that it serves: nobody may be stopped in its favour."""
    drive = Drive(overlapping(drain="it would die", drain_timeout=20.0)).to_drain(NEXT[0])
    assert drive.rollout.is_proven
    drive.to_warm(NEXT[1]).feed(Drained("nothing left", 11))
    assert drive.rollout.state_of(0) is State.STOP
    assert not drive.rollout.is_proven
    drive.feed(Settled(), Ready(22, "registration"))
    assert not drive.rollout.is_proven
    drive.after(1.0)
    assert drive.rollout.is_proven


def test_dead_process_is_not_waited_for() -> None:
    """What was seen of it just before says nothing of the one that the manager starts next."""
    drive = Drive(plan()).to_warm()
    drive.feed(Gone(11), Gone(21))
    assert drive.state is State.RESPAWN
    assert drive.rollout.awaited == []


def test_waiting_process_that_its_manager_was_told_to_stop_is_left_out() -> None:
    """Its turn does not come; a new one that was stopped is not waited for."""
    drive = Drive(plan(OLD)).to_warm()
    assert drive.feed(Stopped(12)) == []
    drive.feed(Ready(21, "registration"))
    drive.after(1.0)
    drive.feed(Switched(""))
    drive.after(0.3)
    drive.feed(Stopped(21), Settled(), Gone(21, "was killed by signal 15"), Gone(11))
    assert drive.state is State.ENDED
    assert drive.finish.exit is ExitStatus.INTERNAL
    assert "web:2 (pid 12) was stopped by its manager meanwhile" in drive.finish.reason


def test_new_process_that_was_stopped_by_name_is_said_to_be() -> None:
    """The old one serves on; the new version is not what failed."""
    drive = Drive(plan()).to_warm()
    drive.feed(Stopped(21), Gone(21, "was killed by signal 15"), Settled())
    reason = "web:3 (pid 21) was stopped by its manager meanwhile"
    assert drive.finish == Finish("rolled_back", ExitStatus.ROLLED_BACK, reason)


def test_broker_can_ask_who_takes_part() -> None:
    """Who comes after whom, where a turn is, and whose death is worth a question."""
    drive = Drive(overlapping()).to_drain(NEXT[0])
    drive.feed(Settled())
    drive.to_warm(NEXT[1])
    rollout = drive.rollout
    assert [rollout.successor_of(pid) for pid in (11, 12, 13)] == [NEXT[0], NEXT[1], None]
    assert [rollout.state_of(number) for number in (0, 1, 9)] == [State.STOP, State.WARM, State.ENDED]
    # Not the one that was told to stop, nor one whose turn has not come.
    assert [rollout.concerns(pid) for pid in (11, 21, 12, 22, 13)] == [False, True, True, True, False]
    assert rollout.processes == [*FOUR[2:], FOUR[0], NEXT[0], FOUR[1], NEXT[1]]


def test_manager_that_does_not_answer_is_asked_until_it_has_one_process_less() -> None:
    """Or it would have one too many from then on: where the new one stays, and where nothing is left."""
    place = Settle(retire=(), known=(11, 21), size=1, kill=False)
    drive = Drive(plan()).to_warm()
    drive.feed(Gone(11), Cancelled("interrupted"))
    assert drive.feed(SettleRefused("no answer", silent=True)) == [place]
    assert drive.feed(SettleRefused("no answer", silent=True)) == [place]
    drive.after(10.0)
    assert drive.finish.exit is ExitStatus.INTERNAL
    assert drive.finish.reason == "interrupted; and web:1 (pid 11) has died meanwhile, so that the new process stays"
    assert drive.feed(Settled()) == [Report("stop", OLD[0], 10.0)]
    assert drive.state is State.ENDED

    drive = Drive(plan()).to_warm()
    drive.feed(Gone(11), SettleRefused("no answer", silent=True), Gone(21, "died"))
    assert drive.feed(SettleRefused("no answer", silent=True)) == []
    assert drive.after(30.0)[-1] == Settle(retire=(), known=(11,), size=1, kill=False)
    drive.feed(Settled())
    assert drive.finish.exit is ExitStatus.NOT_SERVING
    assert drive.finish.reason.startswith("web:3 (pid 21) died, with no old process to go back to")

    drive = Drive(plan()).to_warm()
    drive.feed(Gone(11), SettleRefused("no answer", silent=True), Gone(21, "died"), Started(NEW[1]))
    drive.feed(SettleRefused("no answer", silent=True), Stopped(22))
    assert drive.feed(Gone(22))[-1].__class__ is Settle


def test_question_of_a_turn_that_is_over_is_asked_all_the_same() -> None:
    """It was given up before the manager had answered what it was asked before."""
    drive = Drive(overlapping(drain="it would die", drain_timeout=20.0)).to_drain(NEXT[0]).to_warm(NEXT[1])
    assert drive.feed(Drained("nothing left", 99)) == []
    assert drive.feed(Drained("nothing left", 11))[-1].__class__ is Settle
    assert drive.feed(Gone(12)) == [Resume(22)]  # that its place is the new one's is to be said later
    drive.feed(Cancelled("interrupted"))
    assert drive.feed(Settled()) == [Settle(retire=(), known=(11, 12, 13, 14, 21, 22), size=4, kill=False, turn=1)]
    assert drive.feed(Settled(turn=1)) == [
        Report("stop", Process(12, "web:2"), 1.3),
        Report("failed", NEXT[1], 1.3, drive.finish.reason),
        drive.finish,
    ]
    assert drive.finish.exit is ExitStatus.NOT_SERVING


def test_question_is_asked_once_whatever_has_become_of_its_turn() -> None:
    """What it asks is what it needs when its time has come."""
    drive = Drive(overlapping(drain="it would die", drain_timeout=20.0)).to_drain(NEXT[0]).to_warm(NEXT[1])
    drive.feed(Drained("nothing left", 11), Gone(12), Ready(22, "registration"))
    assert not [one for one in drive.after(1.0) if isinstance(one, Settle)]
    assert drive.feed(Settled()) == [Settle((), (11, 12, 13, 14, 21, 22), 4, kill=False, turn=1)]
    assert drive.feed(Settled())[-1] == Start(2, beside=13)


def test_first_failure_is_the_one_that_is_told() -> None:
    """Of several new processes that die, of one bad version."""
    drive = Drive(overlapping(most=3, drain="it would die", drain_timeout=20.0)).to_drain(NEXT[0]).to_drain(NEXT[1])
    drive.feed(Gone(21, "exited with status 1"), Gone(22, "exited with status 2"))
    while drive.state is not State.ENDED:
        assert drive.feed(StartRefused("no")) or drive.feed(Settled())
    assert drive.finish.reason == "web:5 (pid 21) exited with status 1; 1 of 4 processes run the new version already"


def test_turn_in_front_that_has_no_way_back_stays_when_another_fails() -> None:
    """Its old process has died: the new one has the place."""
    drive = Drive(overlapping(drain="it would die", drain_timeout=20.0)).to_drain(NEXT[0]).to_warm(NEXT[1])
    drive.feed(Gone(12), Settled(), Gone(21, "exited with status 1"))
    assert 22 not in drive.rollout.suspends
    drive.feed(Settled())
    assert drive.finish.exit is ExitStatus.ROLLED_BACK
    assert drive.state is State.ENDED


def test_connections_that_are_handed_over_are_not_any_more_when_the_next_reload_comes() -> None:
    """To whom they went is about to go itself: what is left finishes by the stop signal."""
    drive = Drive(handing()).to_drain()
    drive.hurry()
    leaving = drive.rollout.supersede(drive.now)
    later = Rollout(handing()._replace(old=(NEW[0],), max_draining=2), leaving)
    assert later.begin(drive.now)[:3] == [Suspend(11), TakePlace(11, None), HandOver(11, None)]
    assert Settle((11,), (21,), 2, kill=False) not in later.feed(Started(NEW[1], 1), drive.now)
    assert later.feed(Tick(), drive.now)[-1] == Settle((11,), (21, 22), 2, kill=False)


def test_next_process_of_the_manager_that_was_stopped_is_not_waited_for() -> None:
    """Somebody has stopped it, while it was waited for in place of one that had died."""
    drive = Drive(plan(OLD)).to_drain()
    drive.feed(Settled(), Gone(21), Gone(11), Settled(), Started(NEW[1]), Stopped(22), Gone(22))
    assert drive.effects[-1] == Start(1, beside=12)


def test_other_process_that_is_stopped_changes_nothing() -> None:
    """It is none of this reload's."""
    for stage in ("to_warm", "to_drain"):
        drive = Drive(plan())
        getattr(drive, stage)()
        assert drive.feed(Stopped(99)) == []


def test_stop_that_the_manager_refuses_is_undone_for_a_surplus_process_too() -> None:
    """It is counted again."""
    drive = Drive(plan(OLD)._replace(size=1, surplus=(11,), drain="it would die", drain_timeout=20.0)).to_drain()
    drive.feed(Drained("nothing left", 12), Settled(), Gone(12), Switched("suspended"))
    drive.after(0.3)
    assert drive.feed(Drained("nothing left", 11))[-1] == Settle((11,), (21,), 1, kill=False, turn=1)
    assert drive.feed(SettleRefused("no"))[-1] == Settle((), (11, 21), 2, kill=True, patience=10.0, turn=1)
    assert drive.feed(Settled())[-1].__class__ is Finish


def test_place_that_was_to_be_added_is_not_when_its_process_fails() -> None:
    """The others stay replaced."""
    drive = Drive(plan()._replace(size=2, added=1)).to_drain()
    drive.feed(Settled(), Gone(11))
    drive.to_warm(NEW[1])
    assert drive.feed(Gone(22))[-1] == Settle((22,), (21,), 1, kill=True, patience=10.0, turn=1)
    drive.feed(Settled())
    assert drive.finish.reason.endswith("; 1 of 2 processes run the new version already")


def to_sweep() -> Drive:
    """The old one has ended; what is left over of it has yet to."""
    drive = Drive(plan(), swept=None).to_drain()
    drive.feed(Settled(), Gone(11))
    assert drive.effects[-1] == Sweep()
    return drive


def test_reload_is_not_done_before_what_is_left_over_has_ended() -> None:
    """Then it says what that was; and a broker that is killed meanwhile leaves it to the next."""
    drive = to_sweep()
    assert "done" not in drive.steps
    assert drive.restart() == [Sweep()]
    drive.feed(Swept("pid 12 (uvicorn)"))
    stop, done = [effect for effect in drive.effects if isinstance(effect, Report)][-2:]
    assert (stop.step, stop.process, stop.reason) == ("stop", None, "left over, and ended: pid 12 (uvicorn)")
    assert done.step == "done"
    assert (drive.finish.result, drive.finish.exit) == ("ok", ExitStatus.OK)


def test_what_the_end_of_something_left_over_has_cost_is_said() -> None:
    """It is counted as that of an old process is; and it is news of a reload that was done."""
    cost = Cost(cut=2, cause="it was killed")
    drive = to_sweep()
    drive.feed(Swept("pid 12 (uvicorn)", cost=cost))
    assert drive.finish == Finish("ok", ExitStatus.OK, "2 requests were cut: it was killed", cost)
    (stop,) = [one for one in drive.effects if isinstance(one, Report) and one.reason.startswith("left over")]
    assert (stop.reason, stop.cost) == (
        "left over, and ended: pid 12 (uvicorn); 2 requests were cut: it was killed",
        cost,
    )
    drive = sweeping_while_one_drains()
    drive.feed(Swept(), Gone(11))
    news = drive.feed(Swept("pid 12 (uvicorn)", cost=cost))[-1]
    assert isinstance(news, Report)
    assert (news.step, news.reason) == (
        "failed",
        "when what was left over ended, 2 requests were cut: it was killed",
    )
    assert drive.finish.exit is ExitStatus.OK


def test_old_process_that_has_its_stop_signal_is_known_to_the_next_broker() -> None:
    """Who looks at how its connections end, again."""
    drive = Drive(plan()).to_drain()
    drive.feed(Settled())
    drive.restart()
    assert drive.rollout.is_stopping(11)
    assert not drive.rollout.is_stopping(21)


def test_reload_fails_while_the_old_version_serves_besides() -> None:
    """What may not be ended is named in its last line."""
    drive = to_sweep()
    drive.feed(Swept("", "pid 12 (uvicorn) on web: look at it"))
    reason = "the new version serves, and so does pid 12 (uvicorn) on web: look at it"
    assert drive.finish == Finish("failed", ExitStatus.NOT_SERVING, reason)
    assert drive.steps[-1] == "failed"


def test_only_what_the_new_process_has_left_is_ended_when_it_is_undone() -> None:
    """What is left of older ones is of the version that goes on to serve."""
    drive = Drive(plan(), swept=None).to_warm()
    drive.feed(Gone(21, "was killed by signal 9"), Settled())
    assert drive.effects[-1] == Sweep(21)
    assert drive.restart() == [Sweep(21)]
    drive.feed(Swept("pid 22 (uvicorn)", of=21))
    assert drive.finish == Finish("rolled_back", ExitStatus.ROLLED_BACK, "web:3 (pid 21) was killed by signal 9")
    drive = Drive(plan(), swept=Swept("", "pid 22 (uvicorn) on web: look at it")).to_warm()
    drive.feed(Gone(21, "was killed by signal 9"), Settled())
    assert drive.finish.exit is ExitStatus.NOT_SERVING
    assert drive.finish.reason.endswith(
        "what it has left serves beside the old one: pid 22 (uvicorn) on web: look at it"
    )


def sweeping_while_one_drains() -> Drive:
    """The command is to be told, with one that drains still; what is left over of earlier ones has yet to end."""
    drive = left_to_drain()
    drive.swept = None
    assert drive.after(1.31) == [Sweep()]
    assert drive.rollout.deadline is None or drive.rollout.deadline > drive.now
    return drive


def test_what_is_left_over_ends_before_the_deploy_is_said_to_be_done_with_one_that_drains() -> None:
    """It is the old version too; what the last one leaves is ended when it has drained."""
    drive = sweeping_while_one_drains()
    assert drive.after(1.0) == []
    drive.restart()
    drive.feed(Settled())
    assert drive.after(2.0) == [Sweep()]
    drive.feed(Swept("pid 12 (uvicorn)"))
    assert [report.reason for report in drive.effects[-3:-1] if isinstance(report, Report)] == [
        "left over, and ended: pid 12 (uvicorn)",
        "web:1 (pid 11) takes nothing new, and has up to 30 s to finish what it has; can't see whether requests were "
        "cut: the broker was replaced while it ended what was left over",
    ]
    assert drive.finish.exit is ExitStatus.OK
    assert drive.feed(Gone(11))[-1] == Sweep()
    assert drive.state.value == "sweep"
    assert drive.rollout.only_drains
    assert drive.restart() == [Sweep()]
    assert drive.feed(Swept()) == []
    assert drive.state.value == "ended"


def test_command_is_told_of_what_may_not_be_ended_while_one_drains() -> None:
    """Once; the one that drains goes on to its end, and is looked at then."""
    drive = sweeping_while_one_drains()
    drive.feed(Swept(left="pid 9 (nc) on web: look at it"))
    assert drive.finish.exit is ExitStatus.NOT_SERVING
    assert drive.finish.reason == (
        "the new version serves, and so does pid 9 (nc) on web: look at it; "
        "web:1 (pid 11) takes nothing new, and has up to 30 s to finish what it has"
    )
    assert drive.rollout.only_drains
    drive.feed(Gone(11))
    assert drive.feed(Swept(left="pid 9 (nc) on web: look at it")) == []
    assert drive.state is State.ENDED


def test_reload_is_not_done_where_what_is_left_over_cannot_be_seen() -> None:
    """Of either version; and nothing that was not seen is said to serve."""
    drive = to_sweep()
    drive.feed(Swept(unseen="Too many open files"))
    reason = "the new version serves; can't see whether anything that is left of the old one does: Too many open files"
    assert drive.finish == Finish("failed", ExitStatus.NOT_SERVING, reason)
    assert drive.state is State.ENDED
    drive = Drive(plan(), swept=Swept(unseen="Too many open files")).to_warm()
    drive.feed(Gone(21, "exited with status 1"), Settled())
    assert drive.finish.exit is ExitStatus.NOT_SERVING
    assert drive.finish.reason.endswith(
        "; can't see whether what it has left serves beside the old one: Too many open files"
    )


def test_what_the_last_one_leaves_is_news_of_a_reload_that_was_done() -> None:
    """Whoever asks for the status is told."""
    drive = sweeping_while_one_drains()
    drive.feed(Swept(), Gone(11))
    [news] = drive.feed(Swept(left="pid 9 (nc) on web: look at it"))
    assert isinstance(news, Report)
    assert (news.step, news.reason) == ("failed", "the new version serves, and so does pid 9 (nc) on web: look at it")
    assert drive.finish.exit is ExitStatus.OK


def test_one_that_ends_meanwhile_is_looked_at_before_done_is_said() -> None:
    """What it left was not there to be seen; and nobody's answer to nobody's question changes anything."""
    drive = sweeping_while_one_drains()
    drive.feed(Gone(11))
    assert drive.feed(Swept()) == [Sweep()]
    drive.feed(Swept())
    assert drive.finish == Finish("ok", ExitStatus.OK, "")
    assert Drive(plan()).to_warm().feed(Swept(), Swept(of=21)) == []


def test_nobody_is_said_to_serve_besides_while_the_new_one_does_not() -> None:
    """It has died, and the next one of the manager is waited for; then it is looked once more, and said."""
    drive = sweeping_while_one_drains()
    drive.feed(Gone(21), Gone(11))
    assert drive.state is State.RESPAWN
    assert drive.feed(Swept(left="pid 9 (nc)")) == []
    drive.feed(Settled(), Started(Process(31, "web:9")), Ready(31, "registration"))
    drive.after(1.0)
    drive.feed(Settled())
    drive.feed(Swept(left="pid 9 (nc)"))
    assert drive.finish.reason == "the new version serves, and so does pid 9 (nc)"


def test_failure_while_what_is_left_over_ends_is_told_when_it_is_undone() -> None:
    """It is not said to be done any more; what the new one has left ends too."""
    drive = Drive(overlapping(most=4, drain="it would die", drain_timeout=20.0))
    for new in NEXT:
        drive.to_drain(new)
    drive.swept = None
    assert drive.after(2.0) == [Sweep()]
    drive.feed(Gone(24, "exited with status 1"))
    assert drive.feed(Swept(left="pid 9 (nc)")) == []
    assert drive.feed(Settled()) == [Sweep(24)]
    assert drive.feed(Swept(of=99)) == []
    drive.feed(Gone(14, "exited with status 1"), Swept(of=24))
    assert drive.finish.exit is ExitStatus.NOT_SERVING
    assert drive.finish.reason.endswith("; and web:4 (pid 14) has died meanwhile")


def test_process_that_dies_while_what_the_new_one_has_left_ends_is_told() -> None:
    """That of another is nobody's here."""
    drive = Drive(plan(), swept=None).to_warm()
    drive.feed(Gone(21, "was killed by signal 9"), Settled())
    assert drive.state is State.SWEEP
    assert not drive.rollout.concerns(11)
    assert drive.feed(Gone(99)) == []
    drive.feed(Gone(11), Swept(of=21))
    assert drive.finish.exit is ExitStatus.NOT_SERVING
    assert drive.finish.reason == "web:3 (pid 21) was killed by signal 9; and web:1 (pid 11) has died meanwhile"


def test_what_is_known_later_of_a_death_is_of_that_process_alone() -> None:
    """The manager tells how the new process ended after it was seen to be gone; the old one's end stays as it was."""
    drive = Drive(plan(), swept=None).to_warm()
    assert drive.rollout.is_new(21)
    assert not drive.rollout.is_waited_for(21)
    drive.feed(Gone(21, "has died"), Settled())
    drive.feed(Gone(11))
    drive.rollout.amend(11, "has died", "exited with status 3")
    drive.rollout.amend(21, "has died", "was killed by signal 9")
    drive.feed(Swept(of=21))
    assert drive.finish.reason == "web:3 (pid 21) was killed by signal 9; and web:1 (pid 11) has died meanwhile"


def test_rolled_back_is_only_called_what_serves() -> None:
    """An old one that crashes again and again may live at that moment."""
    for unserved, exit_status in (("", ExitStatus.ROLLED_BACK), ("web", ExitStatus.NOT_SERVING)):
        drive = Drive(plan(), swept=Swept(unserved=unserved)).to_warm()
        drive.feed(Gone(21, "exited with status 0"), Settled())
        assert drive.finish.exit is exit_status
        assert drive.finish.result == ("failed" if unserved else "rolled_back")
        assert ("; and web:1 (pid 11), which stays, is not seen to serve web" in drive.finish.reason) == bool(unserved)
    drive = Drive(plan(), swept=Swept(unserved="web")).to_warm()
    drive.after(30.0)
    drive.feed(Settled(), Gone(21))
    assert drive.finish.exit is ExitStatus.TIMED_OUT


def test_time_out_says_what_was_last_seen_to_be_lacking() -> None:
    """In the place of what is waited for; of another process nothing is taken."""
    drive = Drive(plan()).to_warm()
    drive.feed(Unready(21, "can't see whether it serves: not permitted"), Unready(99, "it is another"))
    drive.after(30.0)
    drive.feed(Settled(), Gone(21))
    assert drive.finish.exit is ExitStatus.TIMED_OUT
    assert drive.finish.reason == (
        "web:3 (pid 21) was not ready within 30 s: can't see whether it serves: not permitted"
    )


def test_version_whose_workers_die_is_undone_though_its_master_lives() -> None:
    """It was ready, and has to stay so for `ready_hold`; later it is the manager's, as any other crash."""
    drive = Drive(plan()).to_warm()
    drive.feed(Ready(21, "registration"))
    assert [process.pid for process in drive.rollout.held] == [21]
    drive.feed(Unready(99, "it is another"))
    drive.feed(Unready(21, "did not stay ready: what serves in it has ended (pid 22)"))
    assert not drive.rollout.held
    drive.feed(Settled(), Gone(21))
    assert drive.finish.exit is ExitStatus.ROLLED_BACK
    assert drive.finish.reason == "web:3 (pid 21) did not stay ready: what serves in it has ended (pid 22)"


def test_workers_that_end_as_their_manager_stops_them_are_no_failure() -> None:
    """Before their master does: what comes of that is said when it has ended."""
    drive = Drive(plan()).to_warm()
    drive.feed(Ready(21, "registration"), Stopped(21), Unready(21, "did not stay ready"))
    assert drive.state is State.HOLD
    drive.feed(Gone(21), Settled())
    assert drive.finish.reason == "web:3 (pid 21) was stopped by its manager meanwhile"


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, with brokers killed anywhere, the promises hold.

    A small world stands for the kernel and the manager: which processes live, are suspended, were ever ready, how many
    the manager is to have, and which of them it is stopping.
    """

    @initialize(
        count=st.integers(1, 4),
        most=st.integers(1, 3),
        surplus=st.integers(0, 1),
        added=st.integers(0, 1),
        verify=st.sampled_from(["", "http:/"]),
        drain=st.sampled_from(["", "yes"]),
    )
    def begin(self, count: int, most: int, surplus: int, added: int, verify: str, drain: str) -> None:
        self.now = 0.0
        self.alive = {11 + number for number in range(count)}
        self.suspended: set[int] = set()
        self.proven: set[int] = set()
        self.stopping: set[int] = set()
        self.died_by_themselves: set[int] = set()  # or were stopped by somebody else
        self.next_pid = 21
        self.finish: Finish | None = None
        self.todo: list[Effect] = []
        self.out = 0  # questions to the manager that are not answered
        self.refused = False  # by a manager that says so; then what it has is not ours to say
        self.most = most
        self.verify, self.drain = verify, drain
        surplus = min(surplus, count - 1)
        self.size = count - surplus + (0 if surplus else added)
        self.counted = count  # how many the manager is to have
        old = tuple(Process(pid, f"web:{pid}") for pid in sorted(self.alive))
        pids = tuple(pid for pid, _ in old)[count - surplus :]
        self.start(old, pids, 0 if surplus else added, [])

    def start(self, old: tuple[Process, ...], surplus: tuple[int, ...], added: int, leaving: list[Turn]) -> None:
        self.old = {process.pid for process in old} | {turn.old.pid for turn in leaving if turn.old}
        self.unswept: set[int] = set()  # the old ones that have ended, and nobody has looked what is left of them
        self.looked_at: set[int] = set()
        plan = Plan("web", "key", old, self.size, 5.0, 1.0, 0.3, 5.0, "", self.verify, self.drain, 5.0)
        plan = plan._replace(max_draining=self.most, surplus=surplus, added=added)
        self.rollout = Rollout(plan, leaving)
        self.take(self.rollout.begin(self.now))

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, (Suspend, HoldBack)) and effect.pid in self.alive:
                self.suspended.add(effect.pid)
            elif isinstance(effect, Resume):
                self.suspended.discard(effect.pid)
            elif isinstance(effect, Finish):
                assert self.finish is None
                self.finish = effect
                if effect.result == "ok":
                    serving = self.alive - self.suspended - self.stopping
                    assert not self.old & serving, "done, and the old version serves"
                    assert not self.unswept, "done, and nobody has looked what is left of them"
            elif effect == Sweep():
                self.looked_at = set(self.unswept)
            if isinstance(effect, (Start, Settle)):
                self.out += 1
                is_cancelled = isinstance(effect, Settle) and effect.kill
                assert self.out == 1 or is_cancelled, "two questions at a time"
            if isinstance(effect, (Suspend, Start, Find, Settle, Verify, Drain, Sweep)):
                self.todo.append(effect)

    def feed(self, event: Event) -> None:
        self.take(self.rollout.feed(event, self.now))

    @precondition(lambda self: self.todo)
    @rule(refuse=st.booleans(), silent=st.booleans(), done=st.booleans(), which=st.integers(0, 3))
    def manager_acts(self, refuse: bool, silent: bool, done: bool, which: int) -> None:
        effect = self.todo[which % len(self.todo)]
        if isinstance(effect, (Start, Settle)):  # the link keeps their order
            effect = next(one for one in self.todo if isinstance(one, (Start, Settle)))
        self.todo.remove(effect)
        if isinstance(effect, Suspend):
            if self.rollout.state is State.SWITCH and self.rollout.old and self.rollout.old.pid == effect.pid:
                self.feed(Switched(""))
        elif isinstance(effect, Verify):
            if not refuse and self.rollout.state is State.VERIFY:
                self.exchange_roles(back=False)
            self.feed(VerifyFailed("no") if refuse else Verified("yes"))
        elif isinstance(effect, Drain):
            self.feed(Drained("no connection left", effect.pid))
        elif isinstance(effect, Sweep):
            assert effect.pid is None or effect.pid not in self.alive
            if effect.pid is None:
                self.unswept -= self.looked_at
            self.feed(Swept(left="a stranger" if refuse else "", of=effect.pid))
        elif isinstance(effect, Start):
            self.out -= 1
            pid = self.spawn() if not refuse or (silent and done) else 0
            if refuse:
                self.feed(StartRefused("no", silent, effect.turn))
            else:
                self.feed(Started(Process(pid, "new"), effect.turn))
        elif isinstance(effect, Find):
            strangers = sorted(self.alive - set(effect.known))
            if refuse:
                self.todo.append(effect)  # the manager takes its time
            elif strangers or len(self.alive - self.stopping) < self.counted:
                pid = strangers[0] if strangers else self.spawn(beside=False)
                self.feed(Started(Process(pid, "new"), effect.turn))
        elif isinstance(effect, Settle):
            self.out -= 1
            self.settle(effect, refuse, silent, done)

    def settle(self, effect: Settle, refuse: bool, silent: bool, done: bool) -> None:
        if refuse and silent and not done:
            self.feed(SettleRefused("no answer", silent=True, turn=effect.turn))
            return
        if refuse and not silent:
            self.refused = True
            self.feed(SettleRefused("no", turn=effect.turn))
            return
        self.counted = effect.size
        staying = self.alive - set(effect.retire) - self.stopping
        strangers = sorted(staying - set(effect.known), reverse=True)
        gone = strangers[: max(0, len(staying) - effect.size)]
        for pid in effect.retire:
            if effect.kill:
                gone.append(pid)
            elif pid in self.alive:
                serving = self.alive - self.suspended - self.stopping - set(effect.retire)
                assert serving & self.proven or self.died_by_themselves, "the old one is stopped and nobody serves"
                self.stopping.add(pid)
        self.feed(SettleRefused("no answer", True, effect.turn) if refuse else Settled(turn=effect.turn))
        for pid in gone:
            if pid in self.alive:
                self.dies(pid, "was stopped")

    def spawn(self, *, beside: bool = True) -> int:
        self.counted += beside
        pid, self.next_pid = self.next_pid, self.next_pid + 1
        self.alive.add(pid)
        return pid

    def dies(self, pid: int, why: str) -> None:
        for pids in (self.alive, self.suspended, self.stopping):
            pids.discard(pid)
        self.unswept |= {pid} & self.old
        self.feed(Gone(pid, why))

    @rule(data=st.data())
    def process_dies(self, data: Any) -> None:
        if self.alive:
            pid = data.draw(st.sampled_from(sorted(self.alive)))
            self.died_by_themselves.add(pid)
            self.dies(pid, "died")

    @precondition(lambda self: self.rollout.held)
    @rule(data=st.data())
    def what_serves_in_a_held_one_dies(self, data: Any) -> None:
        process = data.draw(st.sampled_from(self.rollout.held))
        self.died_by_themselves.add(process.pid)
        self.feed(Unready(process.pid, "did not stay ready"))

    @precondition(lambda self: self.stopping)
    @rule(data=st.data())
    def stopped_process_ends(self, data: Any) -> None:
        self.dies(data.draw(st.sampled_from(sorted(self.stopping))), "was stopped")

    @rule(data=st.data())
    def somebody_else_has_a_process_stopped(self, data: Any) -> None:
        if self.alive:
            pid = data.draw(st.sampled_from(sorted(self.alive)))
            self.died_by_themselves.add(pid)
            self.stopping.add(pid)
            self.feed(Stopped(pid))

    @rule()
    def newcomer_registers(self) -> None:
        newcomer = self.rollout.newcomer
        if newcomer is not None and newcomer.pid in self.alive:
            self.feed(Registered(newcomer.pid))

    @rule()
    def newcomer_is_ready(self) -> None:
        for newcomer in self.rollout.awaited:
            if newcomer.pid in self.alive:
                self.proven.add(newcomer.pid)
                self.feed(Ready(newcomer.pid, "registration"))

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 6.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Tick())

    @precondition(lambda self: self.rollout.state is State.VERIFY)
    @rule()
    def old_process_serves_until_the_new_one_has_answered(self) -> None:
        self.exchange_roles(back=True)

    def exchange_roles(self, *, back: bool) -> None:
        assert self.rollout.old is not None
        assert self.rollout.newcomer is not None
        pids = (self.rollout.old.pid, self.rollout.newcomer.pid)
        serving, waiting = pids if back else reversed(pids)
        self.suspended.discard(serving)
        if waiting in self.alive:
            self.suspended.add(waiting)

    @rule()
    def command_is_interrupted(self) -> None:
        self.feed(Cancelled("interrupted"))

    @precondition(lambda self: self.rollout.only_drains)
    @rule()
    def next_reload_is_asked_for(self) -> None:
        self.take(self.rollout.hurry(self.now))
        if not (self.rollout.only_drains and self.rollout.answered):
            return
        leaving = self.rollout.supersede(self.now)
        assert self.finish is not None
        assert self.rollout.state is State.ENDED
        self.finish = None
        self.out -= sum(isinstance(effect, (Start, Settle)) for effect in self.todo)
        self.todo = []
        olds = {turn.old.pid for turn in leaving if turn.old is not None}
        old = tuple(Process(pid, f"web:{pid}") for pid in sorted(self.alive - self.stopping - olds))
        self.size = max(1, len(old))
        self.start(old, (), 0, leaving)

    @rule()
    def broker_is_killed(self) -> None:
        if self.rollout.state is State.ENDED:
            return
        # Questions to the manager whose answer the dead broker would have had are carried out all the same.
        pending, self.todo, self.out = self.todo, [], 0
        for effect in pending:
            if isinstance(effect, Start):
                self.spawn()
        self.rollout, effects = Rollout.recover(json.loads(json.dumps(self.rollout.record())), self.now)
        self.take(effects)
        self.suspended &= self.rollout.suspends  # what no reload claims is resumed
        for process in self.rollout.processes:
            if process.pid not in self.alive:
                self.feed(Gone(process.pid, "died"))

    @property
    def is_over(self) -> bool:
        return hasattr(self, "rollout") and self.rollout.state is State.ENDED

    @invariant()
    def nobody_is_left_suspended(self) -> None:
        if self.is_over and self.finish is not None and self.finish.result != "failed":
            assert not self.suspended - self.stopping

    @invariant()
    def success_means_all_are_new(self) -> None:
        if self.is_over and self.finish is not None and self.finish.result == "ok":
            assert not self.old & self.alive - self.stopping

    @invariant()
    def never_are_two_generations_left(self) -> None:
        if not self.is_over or self.refused or any(isinstance(effect, Settle) for effect in self.todo):
            return
        most = max(self.size, len(self.rollout.plan.old))
        assert len(self.alive - self.stopping) <= most, self.alive
        assert self.counted <= most, "the manager would start one more"

    @invariant()
    def manager_stops_nobody_by_itself(self) -> None:
        """It has no more processes than it is to have, so it need not choose one."""
        if hasattr(self, "rollout") and not self.out and not self.refused:
            assert len(self.alive - self.stopping) <= self.counted, (self.alive, self.stopping, self.counted)

    @invariant()
    def no_more_drain_than_may(self) -> None:
        if hasattr(self, "rollout"):
            leaving = [turn for turn in self.rollout.draining if turn.pid in self.old]
            assert len(leaving) <= self.most or not self.rollout.plan.old

    @invariant()
    def a_running_reload_can_go_on(self) -> None:
        if hasattr(self, "rollout") and self.rollout.state is not State.ENDED:
            waits_for_time = self.rollout.deadline is not None
            assert self.todo or waits_for_time or self.stopping or self.rollout.state is State.START


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
