"""The laws of a reload, on the pure state machine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sockshare.core.errors import ExitStatus
from sockshare.core.rollout import Rollout, State
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
    Suspend,
    Switched,
    Tick,
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
    """Feeds a rollout, and keeps what came out."""

    def __init__(self, what: Plan) -> None:
        self.rollout = Rollout(what)
        self.now = 100.0
        self.effects: list[Effect] = list(self.rollout.begin(self.now))

    def feed(self, *events: Event) -> list[Effect]:
        new: list[Effect] = []
        for event in events:
            new += self.rollout.feed(event, self.now)
        self.effects += new
        return new

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


def test_processes_are_replaced_one_by_one_when_there_are_several() -> None:
    """The next process is begun when the one before it has ended, and not before."""
    drive = Drive(plan(OLD)).to_drain()
    assert drive.feed(Settled()) == []
    assert Start() in drive.feed(Gone(11))
    drive.to_drain(NEW[1])
    assert drive.effects[-1] == Settle(retire=(12,), known=(21, 22), size=2, kill=False)
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
        assert drive.rollout.suspends == 21
        assert drive.restart() == given_up
        assert drive.feed(Settled()) == []
        assert drive.after(13.9) == []
        drive.feed(Gone(21))
        assert drive.finish.exit is ExitStatus.ROLLED_BACK
        assert drive.rollout.suspends is None


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
    assert Start() not in drive.effects


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
    assert drive.effects.count(Start()) == 1


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
    drive.feed(Settled())
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
    assert drive.rollout.awaited is not None
    drive.feed(Settled(), Started(NEW[1]))
    assert drive.rollout.awaited == NEW[1]
    assert drive.feed(Ready(21, "registration")) == []
    assert HoldBack(22) not in drive.feed(Ready(22, "registration"))
    assert drive.rollout.suspends is None
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
    assert drive.feed(Settled()) == [Start()]
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
    assert drive.rollout.awaited == NEW[1]
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
    assert drive.restart() == []
    assert drive.feed(Settled()) == []
    assert drive.feed(Gone(21))[-1] == Find(known=(11, 21))
    for stage in ("to_warm", "to_hold"):
        drive = Drive(plan())
        getattr(drive, stage)()
        drive.feed(Gone(11), Cancelled("interrupted"))
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
    assert drive.feed(silent) == [stop]
    assert drive.rollout.deadline is None
    drive.feed(Settled())
    assert drive.feed(Gone(11)) == [Report("stop", OLD[0], 11.4)]
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
    assert drive.after(39.9) == []
    drive.after(0.2)
    assert drive.finish.exit is ExitStatus.TIMED_OUT


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
    assert drive.rollout.suspends == 21
    assert drive.feed(Ready(21, "registration"))[0] == HoldBack(21)
    assert drive.rollout.suspends == 21
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
    assert drive.rollout.suspends is None
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
    assert drive.after(19.9) == []
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
    assert drive.restart() == [Suspend(11), Drain(11)]
    assert drive.feed(Gone(11))[-1] == Settle(retire=(), known=(11, 21), size=1, kill=False)


def handing() -> Plan:
    return plan()._replace(drain="its section says so", drain_timeout=20.0, hand_over=True)


def test_old_process_hands_its_connections_to_the_new_one_where_that_is_asked_for() -> None:
    """The drain ends when it says that it has; the next broker asks it again."""
    drive = Drive(handing()).to_drain()
    assert drive.state is State.DRAIN
    assert drive.effects[-1] == HandOver(11, NEW[0])
    assert drive.restart() == [Suspend(11), HandOver(11, NEW[0])]
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
    assert effects == [Settle(retire=(), known=(12, 21), size=2, kill=True, patience=10.0)]
    assert drive.feed(Settled()) == [Start()]
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
    assert drive.rollout.suspends is None
    drive.to_switch()
    assert drive.rollout.suspends == 11
    drive.feed(Gone(21), Settled())
    assert drive.rollout.suspends is None


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


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, with brokers killed anywhere, the promises hold.

    A small world stands for the kernel and the manager: which processes live, are suspended, were ever ready.
    """

    @initialize(count=st.integers(1, 3), verify=st.sampled_from(["", "http:/"]), drain=st.sampled_from(["", "yes"]))
    def begin(self, count: int, verify: str, drain: str) -> None:
        self.now = 0.0
        self.alive = {11 + number for number in range(count)}
        self.old = set(self.alive)
        self.suspended: set[int] = set()
        self.proven: set[int] = set()
        self.died_by_themselves: set[int] = set()
        self.next_pid = 21
        self.finish: Finish | None = None
        self.todo: list[Effect] = []
        self.size = count
        self.refused = False  # by a manager that says so; then what it has is not ours to say
        old = tuple(Process(pid, f"web:{pid}") for pid in sorted(self.alive))
        self.rollout = Rollout(Plan("web", "key", old, count, 5.0, 1.0, 0.3, 5.0, "", verify, drain, 5.0))
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
            if isinstance(effect, (Suspend, Start, Find, Settle, Verify, Drain)):
                self.todo.append(effect)

    def feed(self, event: Event) -> None:
        self.take(self.rollout.feed(event, self.now))

    @precondition(lambda self: self.todo)
    @rule(refuse=st.booleans(), silent=st.booleans(), done=st.booleans())
    def manager_acts(self, refuse: bool, silent: bool, done: bool) -> None:
        effect = self.todo.pop(0)
        if isinstance(effect, Suspend):
            self.feed(Switched(""))
        elif isinstance(effect, Verify):
            if not refuse and self.rollout.state is State.VERIFY:
                self.exchange_roles(back=False)
            self.feed(VerifyFailed("no") if refuse else Verified("yes"))
        elif isinstance(effect, Drain):
            self.feed(Drained("no connection left"))
        elif isinstance(effect, Start):
            pid = self.spawn() if not refuse or (silent and done) else 0
            if refuse:
                self.feed(StartRefused("no", silent))
            else:
                self.feed(Started(Process(pid, "new")))
        elif isinstance(effect, Find):
            strangers = sorted(self.alive - set(effect.known))
            if refuse:
                self.todo.append(effect)  # the manager takes its time
            elif strangers or len(self.alive) < self.size:
                self.feed(Started(Process(strangers[0] if strangers else self.spawn(), "new")))
        elif isinstance(effect, Settle):
            if refuse and silent and not done:
                self.feed(SettleRefused("no answer", silent=True))
                return
            if refuse and not silent:
                self.refused = True
                self.feed(SettleRefused("no"))
                return
            staying = self.alive - set(effect.retire)
            strangers = sorted(staying - set(effect.known), reverse=True)
            for pid in strangers[: max(0, len(staying) - effect.size)]:
                self.dies(pid, "too many")
            for pid in effect.retire:
                if not effect.kill:
                    serving = self.alive - self.suspended - set(effect.retire)
                    assert serving & self.proven or self.died_by_themselves, "the old one is stopped and nobody serves"
                if pid in self.alive:
                    self.dies(pid, "was stopped")
            self.feed(SettleRefused("no answer", silent=True) if refuse else Settled())

    def spawn(self) -> int:
        pid, self.next_pid = self.next_pid, self.next_pid + 1
        self.alive.add(pid)
        return pid

    def dies(self, pid: int, why: str) -> None:
        self.alive.discard(pid)
        self.suspended.discard(pid)
        self.feed(Gone(pid, why))

    @rule(data=st.data())
    def process_dies(self, data: Any) -> None:
        if self.alive:
            pid = data.draw(st.sampled_from(sorted(self.alive)))
            self.died_by_themselves.add(pid)
            self.dies(pid, "died")

    @rule()
    def newcomer_registers(self) -> None:
        newcomer = self.rollout.newcomer
        if newcomer is not None and newcomer.pid in self.alive:
            self.feed(Registered(newcomer.pid))

    @rule()
    def newcomer_is_ready(self) -> None:
        newcomer = self.rollout.newcomer
        if newcomer is not None and newcomer.pid in self.alive:
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

    @rule()
    def broker_is_killed(self) -> None:
        if self.rollout.state is State.ENDED:
            return
        # Questions to the manager whose answer the dead broker would have had are carried out all the same.
        pending, self.todo = self.todo, []
        for effect in pending:
            if isinstance(effect, Start):
                self.spawn()
        self.rollout, effects = Rollout.recover(json.loads(json.dumps(self.rollout.record())), self.now)
        self.take(effects)
        self.suspended &= {self.rollout.suspends}  # what no reload claims is resumed
        for process in (self.rollout.newcomer, *self.rollout.plan.old):
            if process is not None and process.pid not in self.alive:
                self.feed(Gone(process.pid, "died"))

    @invariant()
    def nobody_is_left_suspended(self) -> None:
        if getattr(self, "finish", None) is not None and self.finish is not None and self.finish.result != "failed":
            assert not self.suspended

    @invariant()
    def success_means_all_are_new(self) -> None:
        if getattr(self, "finish", None) is not None and self.finish is not None and self.finish.result == "ok":
            assert not self.old & self.alive

    @invariant()
    def never_are_two_generations_left(self) -> None:
        if not hasattr(self, "rollout") or self.refused or any(isinstance(effect, Settle) for effect in self.todo):
            return
        if self.rollout.state is State.ENDED:
            assert len(self.alive) <= self.size, self.alive

    @invariant()
    def a_running_reload_can_go_on(self) -> None:
        if hasattr(self, "rollout") and self.rollout.state is not State.ENDED:
            waits_for_time = self.rollout.deadline is not None
            assert self.todo or waits_for_time or self.rollout.state is State.START


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
