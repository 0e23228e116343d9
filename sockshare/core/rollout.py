"""The reload of one program, as a pure state machine.

Theory of operation. A reload replaces a program's processes one by one; each replacement is a *turn*:

    START  a process is started beside the old one
    WARM   it becomes ready, or `ready_timeout` passes; its own registration is held back as soon as it is noticed, so
           that next to no client sees a version that has yet to prove itself
    HOLD   it stays alive for `ready_hold` seconds, still held back: a claim to be ready is not believed alone
    SWITCH the new one's registration is let go, the old one's is suspended: it gets no new connections
    VERIFY a page must answer from the new one, where that was asked for
    QUIESCE what the old one has accepted, it reads
    DRAIN  the old one's connections are ended as they become idle, where it would not do so itself; or it hands them
           to the new one, where both can
    STOP   the old one has its stop signal, and finishes what it has
    RESPAWN the new one died when there was no old one to go back to: the manager's next one takes its place
    UNDO   a failure before STOP: the old one is resumed; the new one is held back, finishes what it has accepted, if
           it does so soon, and is killed

An old process that dies before the switch leaves its place to the new one, whose turn goes on. A manager that does not
answer when a process is to go is asked until it does, if need be after whoever waits for the reload was told so: it may
have done what it was asked, and two generations would be left.

Events go in, effects come out; time is an argument. The effects on entering a state may be repeated, so the broker
after one that was killed enters the recorded state again (`recover`): a reload whose switch had happened is finished,
another is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from .errors import ExitStatus
from .records import named
from .steps import (
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


class State(Enum):
    """Where a rollout is; the value is what the journal holds."""

    START = "start"
    WARM = "warm"
    HOLD = "hold"
    SWITCH = "switch"
    VERIFY = "verify"
    QUIESCE = "quiesce"
    DRAIN = "drain"
    STOP = "stop"
    RESPAWN = "respawn"
    UNDO = "undo"
    ENDED = "ended"


#: Seconds granted beyond the manager's own stop time-out before a process that does not end is given up.
_STOP_GRACE = 10.0
#: Seconds at most that a new process which is given up has for the requests that it has accepted.
_PATIENCE = 10.0
#: Seconds that are left to a manager that holds the old process back, and stops it when its own time is over.
_MARGIN = 2.0
#: Seconds that whoever waits for a reload is left waiting for a manager that does not answer.
_SILENCE = 10.0


class _Record(NamedTuple):
    """What `Rollout.record` returns; a field that is added later has a default."""

    plan: dict[str, Any]
    state: State
    deadline: float | None
    newcomer: Process | None
    pending: list[Process]
    replaced: list[Process]
    began: float
    old_gone: bool
    newcomer_gone: str
    lost: str
    respawned_by: float | None
    answered: bool
    failure: tuple[ExitStatus, str]


class Rollout:
    """One reload. `begin` or `recover` it, then `feed` it events, and perform the effects in order.

    Attributes:
        state: Where it is.
        deadline: When `Tick` is next due (monotonic seconds), or None.
        newcomer: The process that this turn has started, once known.
        answered: Whether `Finish` was said, though the reload goes on: the manager has yet to answer.
        began: When the reload began (monotonic seconds).
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.state = State.START
        self.deadline: float | None = None
        self.newcomer: Process | None = None
        self._pending = list(plan.old)  # the first is this turn's
        self._replaced: list[Process] = []
        self.began = 0.0
        self._old_gone = False
        self._newcomer_gone = ""  # why
        self._lost = ""  # what became of the new one that this turn had before
        self._respawned_by: float | None = None  # until when another one is waited for
        self.answered = False
        self._silent = False
        self._settled = False
        self._verified = ""
        self._failure: tuple[ExitStatus, str] = (ExitStatus.OK, "")

    # What the broker asks of it.

    @property
    def old(self) -> Process | None:
        """The process that this turn replaces."""
        return self._pending[0] if self._pending else None

    @property
    def suspends(self) -> int | None:
        """The pid whose registrations this reload claims to have suspended: nobody else may resume them."""
        if self.state in (State.SWITCH, State.VERIFY, State.QUIESCE, State.DRAIN, State.STOP):
            return self.old and self.old.pid
        if self.state in (State.WARM, State.HOLD):
            return None if self._old_gone else self.newcomer and self.newcomer.pid
        if self.state is State.UNDO and not self._newcomer_gone:
            # It is on its way out: what it accepted now might go with it.
            return self.newcomer and self.newcomer.pid
        return None

    @property
    def holds_back(self) -> int | None:
        """The pid of the new process that is not to have anything yet that only some may have."""
        if self.newcomer is None or self._old_gone or self.state not in (State.WARM, State.HOLD):
            return None
        return self.newcomer.pid

    @property
    def awaited(self) -> Process | None:
        """The process that has yet to become ready."""
        return self.newcomer if self.state in (State.WARM, State.RESPAWN) else None

    def may_keep_waiting(self, now: float) -> float:
        """Seconds for which the manager need not hear of an undo yet, as what is given up has something in hand."""
        if self.plan.newcomer is None:
            return self._patience
        # It is the manager's own command: at the end of its stop timeout the old one would be stopped, too.
        return max(0.0, min(self._patience, self.began + self.plan.stop_timeout - _MARGIN - now))

    def amend(self, said: str, known: str) -> None:
        """Let the reason of a failure be what is *known* by now of a death, instead of what was *said* of it."""
        self._failure = (self._failure[0], self._failure[1].replace(said, known))

    def begin(self, now: float) -> list[Effect]:
        """Begin the first turn."""
        self.began = now
        if not self._pending:
            return self._finish(ExitStatus.INTERNAL, "it has no running process")
        if self.plan.alone:
            return self._enter_switch(now)
        return self._enter_start(now)

    def feed(self, event: Event, now: float) -> list[Effect]:
        """Take *event* at *now* (monotonic seconds); one that means nothing in this state changes nothing."""
        if isinstance(event, Gone) and self.old is not None and event.pid in [old.pid for old in self._pending[1:]]:
            # One whose turn has not come died by itself: the manager starts it anew, with the new version.
            self._pending = [old for old in self._pending if old.pid != event.pid]
            return []
        transition = _TRANSITIONS.get((self.state, type(event)))
        return transition(self, event, now) if transition else []

    def record(self) -> dict[str, Any]:
        """What a later broker needs to `recover` this rollout: JSON values only."""
        return {
            "plan": {**self.plan._asdict(), "old": [list(old) for old in self.plan.old]},
            "state": self.state.value,
            "deadline": self.deadline,
            "newcomer": self.newcomer and list(self.newcomer),
            "pending": [list(old) for old in self._pending],
            "replaced": [list(new) for new in self._replaced],
            "began": self.began,
            "old_gone": self._old_gone,
            "newcomer_gone": self._newcomer_gone,
            "lost": self._lost,
            "respawned_by": self._respawned_by,
            "answered": self.answered,
            "failure": [int(self._failure[0]), self._failure[1]],
        }

    @classmethod
    def recover(cls, record: Mapping[str, Any], now: float) -> tuple[Rollout, list[Effect]]:
        """The rollout of *record*, and the effects that bring it on its way again.

        Raises:
            ValueError: The record is not one of `record`'s, nor of a version that is a neighbour's.
        """
        found = named(_Record, record)
        rollout = cls(named(Plan, found.plan))
        rollout.state = found.state
        rollout.deadline = found.deadline
        rollout.newcomer = found.newcomer
        rollout._pending = found.pending
        rollout._replaced = found.replaced
        rollout.began = found.began
        rollout._old_gone = found.old_gone
        rollout._newcomer_gone = found.newcomer_gone
        rollout._lost = found.lost
        rollout._respawned_by = found.respawned_by
        rollout.answered = found.answered
        rollout._failure = found.failure
        return rollout, rollout._enter_again(now)

    # Entering states.

    def _enter_again(self, now: float) -> list[Effect]:
        goes_on = bool(self._replaced) or self._old_gone
        if self.state in (State.START, State.WARM, State.HOLD) and not goes_on:
            return self._undo(ExitStatus.ROLLED_BACK, "the broker was restarted before the switch", now)
        if self.state is State.START:
            # Whether the manager started one is not known: have it drop any that is too many, then start one.
            self._settled = False
            return [self._settle((), kill=True)]
        if self.state is State.HOLD:
            self.state = State.WARM  # readiness is shown anew
            self.deadline = now + self.plan.ready_timeout
        if self.state is State.SWITCH:
            return self._enter_switch(now)
        if self.state in (State.VERIFY, State.QUIESCE, State.DRAIN) and self.old is not None:
            again: list[Effect] = [Suspend(self.old.pid)]
            if self.state is State.VERIFY and self.newcomer is not None:
                # While its answer was waited for the roles may have been exchanged.
                again = [Resume(self.newcomer.pid), *again, Verify(self.newcomer.pid)]
            if self.state is State.DRAIN:
                again.append(self._drain(self.old))
            return again
        if self.state is State.STOP:
            return self._enter_stop(now)
        if self.state is State.RESPAWN and self._newcomer_gone:
            return [self._find()]
        if self.state is State.UNDO:
            return self._enter_undo(now)
        return []

    def _enter_start(self, now: float) -> list[Effect]:
        self.state, self.deadline = State.START, None
        self.newcomer, self._newcomer_gone, self._settled = None, "", True
        return [Start()]

    def _enter_switch(self, now: float) -> list[Effect]:
        self.state, self.deadline = State.SWITCH, None
        # In this order: there is never a moment when neither is registered.
        effects: list[Effect] = [] if self.newcomer is None else [Resume(self.newcomer.pid)]
        if self._old_gone or self.old is None:
            return [*effects, *self._enter_stop(now)]
        return [*effects, Suspend(self.old.pid)]

    def _enter_respawn(self, now: float) -> list[Effect]:
        assert self.newcomer is not None
        self.state, self._lost = State.RESPAWN, f"{_named(self.newcomer)} {self._newcomer_gone}"
        if self._respawned_by is None:
            self._respawned_by = now + self.plan.ready_timeout
        self.deadline = self._respawned_by
        # The manager is told once more how many there are to be: so it need not wait for its next look.
        return [self._settle((), kill=False), self._find()]

    def _enter_quiesce(self, now: float, how: str) -> list[Effect]:
        self.state, self.deadline = State.QUIESCE, now + self.plan.quiesce
        self._verified = how
        return []

    def _enter_drain(self, now: float) -> list[Effect]:
        assert self.old is not None
        if not self.plan.drain:
            return [self._report("drain", self.old, now, "it drains itself on its stop signal"), *self._enter_stop(now)]
        self.state, self.deadline = State.DRAIN, now + self.plan.drain_timeout
        how = f"from outside: {self.plan.drain}"
        if self.plan.hand_over:
            how = f"it hands its connections to {_named(self.newcomer) if self.newcomer else 'the others'}"
        return [self._report("drain", self.old, now, how), self._drain(self.old)]

    def _enter_stop(self, now: float) -> list[Effect]:
        self.state, self.deadline = State.STOP, now + self.plan.stop_timeout + _STOP_GRACE
        self._settled = self._silent = False
        return [self._settle_stop()]

    def _enter_undo(self, now: float) -> list[Effect]:
        self.state, self.deadline = State.UNDO, now + self._patience + _STOP_GRACE
        self._settled = self._silent = False
        effects: list[Effect] = []
        if self.old is not None and not self._old_gone:
            effects.append(Resume(self.old.pid))
        if self.newcomer is not None and not self._newcomer_gone:
            # It may have accepted requests already, in the instant before it was held back or while it served: it may
            # finish those, and is to accept no more.
            effects.append(HoldBack(self.newcomer.pid))
        return [*effects, self._settle_undo()]

    # Transitions.

    def _started(self, event: Started, now: float) -> list[Effect]:
        self.state, self.newcomer, self.deadline = State.WARM, event.process, now + self.plan.ready_timeout
        effects: list[Effect] = [self._report("start", self.newcomer, now)]
        return [*effects, self._settle((), kill=False)] if self._old_gone else effects

    def _start_refused(self, event: StartRefused | SettleRefused, now: float) -> list[Effect]:
        if event.silent:
            return self._undo(ExitStatus.INTERNAL, event.reason, now)
        if self._replaced:
            return self._undo(ExitStatus.ROLLED_BACK, event.reason, now)
        return self._finish(ExitStatus.INTERNAL, event.reason, now)

    def _respawned(self, event: Started, now: float) -> list[Effect]:
        self.newcomer, self._newcomer_gone = event.process, ""
        return [self._report("start", self.newcomer, now, f"in its place: {self._lost}")]

    def _not_respawned(self, event: StartRefused, now: float) -> list[Effect]:
        reason = f"{self._lost}, with no old process to go back to; {event.reason}"
        return self._finish(ExitStatus.NOT_SERVING, reason, now)

    def _gone_in_respawn(self, event: Gone, now: float) -> list[Effect]:
        if self._newcomer_gone or self.newcomer is None or event.pid != self.newcomer.pid:
            return []
        self._newcomer_gone = event.reason
        self._lost = f"{_named(self.newcomer)} {event.reason}"
        return [self._find()]

    def _tick_respawn(self, event: Tick, now: float) -> list[Effect]:
        if not self._due(now):
            return []
        return self._not_respawned(StartRefused(f"no other one was ready within {self.plan.ready_timeout:g} s"), now)

    def _start_settled(self, event: Settled, now: float) -> list[Effect]:
        # Only after `recover`; otherwise nothing was asked to settle in this state.
        return [] if self._settled else self._enter_start(now)

    def _registered(self, event: Registered, now: float) -> list[Effect]:
        if self.newcomer is None or event.pid != self.newcomer.pid or self._old_gone:
            return []
        return [HoldBack(self.newcomer.pid)]

    def _ready(self, event: Ready, now: float) -> list[Effect]:
        if self.newcomer is None or event.pid != self.newcomer.pid:
            return []
        self.state, self.deadline = State.HOLD, now + self.plan.ready_hold
        effects: list[Effect] = [] if self._old_gone else [HoldBack(self.newcomer.pid)]
        return [*effects, self._report("ready", self.newcomer, now, event.how)]

    def _gone(self, event: Gone, now: float) -> list[Effect]:
        if self.newcomer is not None and event.pid == self.newcomer.pid:
            self._newcomer_gone = event.reason
            if self._old_gone:
                return self._enter_respawn(now)
            return self._undo(ExitStatus.ROLLED_BACK, f"{_named(self.newcomer)} {event.reason}", now)
        if self.old is not None and event.pid == self.old.pid:
            self._old_gone = True
            if self.state in (State.SWITCH, State.VERIFY, State.QUIESCE, State.DRAIN):
                # Until its page has answered, it is the new one that is suspended.
                return [*([Resume(self.newcomer.pid)] if self.newcomer else []), *self._enter_stop(now)]
            if self.newcomer is not None:
                # Its place is the new one's, at once: the manager has none to start for it.
                return [Resume(self.newcomer.pid), self._settle((), kill=False)]
        return []

    def _tick_start(self, event: Tick, now: float) -> list[Effect]:
        return self._undo_if_expired(now)

    def _tick_warm(self, event: Tick, now: float) -> list[Effect]:
        if self._due(now):
            assert self.newcomer is not None
            reason = f"was not ready within {self.plan.ready_timeout:g} s: no sign of {self.plan.awaited}"
            return self._undo(ExitStatus.TIMED_OUT, f"{_named(self.newcomer)} {reason}", now)
        return self._undo_if_expired(now)

    def _tick_hold(self, event: Tick, now: float) -> list[Effect]:
        if not self._due(now):
            return self._undo_if_expired(now)
        return [self._report("hold", self.newcomer, now), *self._enter_switch(now)]

    def _switched(self, event: Switched, now: float) -> list[Effect]:
        report = self._report("switch", self.newcomer, now, event.how)
        if self.plan.verify and self.newcomer is not None:
            self.state, self.deadline = State.VERIFY, now + self.plan.ready_timeout
            return [report, Verify(self.newcomer.pid)]
        return [report, *self._enter_quiesce(now, "")]

    def _verify_passed(self, event: Verified, now: float) -> list[Effect]:
        return self._enter_quiesce(now, event.how)

    def _verify_failed(self, event: VerifyFailed, now: float) -> list[Effect]:
        return self._undo(ExitStatus.ROLLED_BACK, event.reason, now)

    def _tick_verify(self, event: Tick, now: float) -> list[Effect]:
        if not self._due(now):
            return self._undo_if_expired(now)
        reason = f"{self.plan.verify} has not answered from the new process within {self.plan.ready_timeout:g} s"
        return self._undo(ExitStatus.TIMED_OUT, reason, now)

    def _tick_quiesce(self, event: Tick, now: float) -> list[Effect]:
        if not self._due(now):
            return []
        return [self._report("quiesce", self.old, now, self._verified), *self._enter_drain(now)]

    def _drained(self, event: Drained, now: float) -> list[Effect]:
        return [self._report("drain", self.old, now, event.how), *self._enter_stop(now)]

    def _tick_drain(self, event: Tick, now: float) -> list[Effect]:
        if not self._due(now):
            return []
        return self._drained(Drained(f"given up after {self.plan.drain_timeout:g} s"), now)

    def _gone_in_stop(self, event: Gone, now: float) -> list[Effect]:
        if self.newcomer is not None and event.pid == self.newcomer.pid:
            self._newcomer_gone = event.reason
        elif self.old is not None and event.pid == self.old.pid:
            self._old_gone = True
        return self._end_turn_if_drained(now)

    def _stop_settled(self, event: Settled, now: float) -> list[Effect]:
        if event.stopped:
            return self._finish(ExitStatus.NOT_SERVING, f"{self.plan.program} was stopped meanwhile", now)
        self._settled, self.deadline = True, now + self.plan.stop_timeout + _STOP_GRACE
        return self._end_turn_if_drained(now)

    def _stop_refused(self, event: SettleRefused, now: float) -> list[Effect]:
        if event.silent:
            # It may have its stop signal already, so there is no way back.
            return self._ask_again(event.reason, now, self._settle_stop())
        # The old one is suspended but was not told to stop: it is still whole, so it takes over again.
        return self._undo(ExitStatus.INTERNAL, event.reason, now)

    def _tick_stop(self, event: Tick, now: float) -> list[Effect]:
        if not self._due(now):
            return []
        if not self._settled:
            reason = self._failure[1] or "the manager does not answer"
            return self._answer(f"{reason}; the new process serves, and the old one is stopped as soon as it does", now)
        old = "it" if self.old is None else _named(self.old)
        return self._finish(
            ExitStatus.TIMED_OUT,
            f"{old} has not ended {self.plan.stop_timeout + _STOP_GRACE:g} s after its stop signal",
            now,
        )

    def _end_turn_if_drained(self, now: float) -> list[Effect]:
        if not (self._settled and self._old_gone):
            return []
        effects: list[Effect] = [] if self._lost else [self._report("stop", self.old, now)]
        if self._newcomer_gone:
            return [*effects, *self._enter_respawn(now)]
        self._pending.pop(0)
        if self.newcomer is None:  # none was to come
            return [*effects, *self._finish(ExitStatus.OK, "", now)]
        self._replaced.append(self.newcomer)
        self._old_gone, self._lost, self._respawned_by = False, "", None
        if not self._pending:
            return [*effects, *self._finish(ExitStatus.OK, "", now)]
        if self.answered or self._expired(now):
            return [*effects, *self._finish(ExitStatus.TIMED_OUT, self._timed_out(), now)]
        return [*effects, *self._enter_start(now)]

    def _cancelled(self, event: Cancelled, now: float) -> list[Effect]:
        return self._undo(ExitStatus.ROLLED_BACK, event.reason, now)

    def _undo_settled(self, event: Settled, now: float) -> list[Effect]:
        self._settled, self.deadline = True, now + self._patience + _STOP_GRACE
        if event.stopped:
            self._failure = (ExitStatus.NOT_SERVING, f"{self.plan.program} was stopped meanwhile")
        return self._end_if_undone(now)

    def _gone_in_undo(self, event: Gone, now: float) -> list[Effect]:
        if self.newcomer is not None and event.pid == self.newcomer.pid:
            self._newcomer_gone = event.reason
        elif self.old is not None and event.pid == self.old.pid:
            self._old_gone = True
        return self._end_if_undone(now)

    def _end_if_undone(self, now: float) -> list[Effect]:
        if not self._settled or (self.newcomer is not None and not self._newcomer_gone):
            return []
        status, reason = self._failure
        if self._old_gone and self.old is not None:
            status, reason = ExitStatus.NOT_SERVING, f"{reason}; and {_named(self.old)} has died meanwhile"
        if status is ExitStatus.NOT_SERVING:
            return self._finish(status, reason, now)
        effects: list[Effect] = [] if self.answered else [self._report("rolled_back", self.old, now, reason)]
        return [*effects, *self._finish(status, reason, now, "rolled_back")]

    def _undo_refused(self, event: SettleRefused, now: float) -> list[Effect]:
        if event.silent:
            return self._ask_again(event.reason, now, self._settle_undo())
        reason = self._failure[1]
        return self._finish(ExitStatus.INTERNAL, f"{reason}; and can't roll back: {event.reason}", now)

    def _tick_undo(self, event: Tick, now: float) -> list[Effect]:
        if not self._due(now):
            return []
        if not self._settled:
            reason = f"{self._failure[1]}; the old process serves, and the new one goes as soon as the manager answers"
            return self._answer(reason, now)
        return self._undo_refused(SettleRefused("the new process has not ended"), now)

    # Parts of the above.

    @property
    def _patience(self) -> float:
        return min(self.plan.stop_timeout, _PATIENCE)

    def _ask_again(self, reason: str, now: float, settle: Settle) -> list[Effect]:
        # No pause: each question waits for its answer as long as its manager's host has patience.
        if not self._silent:
            self._silent = True
            self.deadline = None if self.answered else now + _SILENCE
            if self.state is State.STOP:
                self._failure = (ExitStatus.INTERNAL, reason)
        return [settle]

    def _answer(self, reason: str, now: float) -> list[Effect]:
        answered, self.answered, self.deadline = self.answered, True, None
        if answered:
            return []
        return [self._report("failed", self.newcomer, now, reason), Finish("failed", ExitStatus.INTERNAL, reason)]

    def _drain(self, old: Process) -> Effect:
        return HandOver(old.pid, self.newcomer) if self.plan.hand_over else Drain(old.pid)

    def _settle_stop(self) -> Settle:
        return self._settle(() if self._old_gone or self.old is None else (self.old.pid,), kill=False)

    def _settle_undo(self) -> Settle:
        return self._settle(() if self.newcomer is None else (self.newcomer.pid,), kill=True)

    def _find(self) -> Find:
        return Find(tuple(process.pid for process in self._living()))

    def _undo(self, status: ExitStatus, reason: str, now: float) -> list[Effect]:
        if self._old_gone and self.old is not None and self.newcomer is not None:
            # There is nobody to go back to, and the new one has the place already.
            reason += f"; and {_named(self.old)} has died meanwhile, so that the new process stays"
            return self._finish(ExitStatus.NOT_SERVING, reason, now)
        if self._replaced:
            total = len(self._replaced) + len(self._pending)
            reason += f"; {len(self._replaced)} of {total} processes run the new version already"
        self._failure = (status, reason)
        return [self._report("failed", self.newcomer, now, reason), *self._enter_undo(now)]

    def _undo_if_expired(self, now: float) -> list[Effect]:
        return self._undo(ExitStatus.TIMED_OUT, self._timed_out(), now) if self._expired(now) else []

    def _timed_out(self) -> str:
        return f"the reload of {self.plan.program} was not over within its --timeout"

    def _expired(self, now: float) -> bool:
        return self.plan.expires is not None and now >= self.plan.expires

    def _due(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    def _settle(self, retire: Iterable[int], *, kill: bool) -> Settle:
        retired = tuple(retire)
        known = tuple(process.pid for process in self._living() if process.pid not in retired)
        return Settle(retired, known, self.plan.size, kill, self._patience if kill else 0.0)

    def _living(self) -> list[Process]:
        return [*self._pending, *self._replaced, *([self.newcomer] if self.newcomer else [])]

    def _report(self, step: str, process: Process | None, now: float, reason: str = "") -> Report:
        return Report(step, process, round(now - self.began, 3), reason)

    def _finish(
        self, status: ExitStatus, reason: str, now: float | None = None, result: str | None = None
    ) -> list[Effect]:
        self.state, self.deadline = State.ENDED, None
        if self.answered:
            return []
        if result is None:
            result = "ok" if status is ExitStatus.OK else "failed"
        effects: list[Effect] = []
        if result != "rolled_back":
            when = self.began if now is None else now
            effects.append(self._report("done" if result == "ok" else "failed", self.newcomer, when, reason))
        return [*effects, Finish(result, status, reason)]


_Transition = Callable[[Rollout, Any, float], "list[Effect]"]

#: All transitions: what is not here changes nothing.
_TRANSITIONS: dict[tuple[State, type], _Transition] = {
    (State.START, Started): Rollout._started,
    (State.START, StartRefused): Rollout._start_refused,
    (State.START, Settled): Rollout._start_settled,
    (State.START, SettleRefused): Rollout._start_refused,
    (State.START, Gone): Rollout._gone,
    (State.START, Tick): Rollout._tick_start,
    (State.START, Cancelled): Rollout._cancelled,
    (State.WARM, Registered): Rollout._registered,
    (State.WARM, Ready): Rollout._ready,
    (State.WARM, Gone): Rollout._gone,
    (State.WARM, Tick): Rollout._tick_warm,
    (State.WARM, Cancelled): Rollout._cancelled,
    (State.HOLD, Gone): Rollout._gone,
    (State.HOLD, Tick): Rollout._tick_hold,
    (State.HOLD, Cancelled): Rollout._cancelled,
    (State.SWITCH, Switched): Rollout._switched,
    (State.SWITCH, Gone): Rollout._gone,
    (State.SWITCH, Cancelled): Rollout._cancelled,
    (State.VERIFY, Verified): Rollout._verify_passed,
    (State.VERIFY, VerifyFailed): Rollout._verify_failed,
    (State.VERIFY, Gone): Rollout._gone,
    (State.VERIFY, Tick): Rollout._tick_verify,
    (State.VERIFY, Cancelled): Rollout._cancelled,
    (State.QUIESCE, Gone): Rollout._gone,
    (State.QUIESCE, Tick): Rollout._tick_quiesce,
    (State.DRAIN, Drained): Rollout._drained,
    (State.DRAIN, Gone): Rollout._gone,
    (State.DRAIN, Tick): Rollout._tick_drain,
    (State.STOP, Gone): Rollout._gone_in_stop,
    (State.STOP, Settled): Rollout._stop_settled,
    (State.STOP, SettleRefused): Rollout._stop_refused,
    (State.STOP, Tick): Rollout._tick_stop,
    (State.RESPAWN, Started): Rollout._respawned,
    (State.RESPAWN, StartRefused): Rollout._not_respawned,
    (State.RESPAWN, Ready): Rollout._ready,
    (State.RESPAWN, Gone): Rollout._gone_in_respawn,
    (State.RESPAWN, Tick): Rollout._tick_respawn,
    (State.UNDO, Settled): Rollout._undo_settled,
    (State.UNDO, Gone): Rollout._gone_in_undo,
    (State.UNDO, SettleRefused): Rollout._undo_refused,
    (State.UNDO, Tick): Rollout._tick_undo,
}


def _named(process: Process) -> str:
    return f"{process.name} (pid {process.pid})"
