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
    SWEEP  what the new one has left, if it was undone, is ended

Turns overlap: while fewer than `max_draining` old processes are in DRAIN or STOP, the next turn begins. A process that
the configuration has no place for any more has a turn in which nothing comes; one that it has a place more for, a turn
in which nothing goes. The command is told *done* when every new process serves and what is left of the old version
takes nothing new; the machine goes on to the end of that, or hands it to the reload that comes next (`supersede`).
Before it is told, and when the last turn has ended, what is left over of the old version is ended: servers of wrappers,
workers of masters that have died.

An old process that dies before the switch leaves its place to the new one, whose turn goes on. A manager that does not
answer when a process is to go is asked until it does, if need be after whoever waits for the reload was told so: it may
have done what it was asked, and two generations would be left. It has one question at a time, for each says how many
processes there are to be.

Events go in, effects come out; time is an argument. The effects on entering a state may be repeated, so the broker
after one that was killed enters the recorded states again (`recover`): a turn whose switch had happened is finished,
the first one otherwise is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from .cost import Cost, sentence, total
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
    SWEEP = "sweep"
    ENDED = "ended"


#: The states of a turn whose old process takes nothing new, and is on its way out.
_LEAVING = (State.DRAIN, State.STOP)
#: The states before those, of which one turn may be in at a time.
_IN_FRONT = (State.START, State.WARM, State.HOLD, State.SWITCH, State.VERIFY, State.QUIESCE)
#: Those of a turn that has failed.
_UNDONE = (State.UNDO, State.SWEEP)

#: The states in which the new process serves in the place of the old one, whose end is this reload's.
_REPLACED = (State.QUIESCE, *_LEAVING)

#: The end of a process, in words, that was killed.
KILLED = "was killed by signal 9"

#: Seconds granted beyond the manager's own stop time-out before a process that does not end is given up.
_STOP_GRACE = 10.0
#: Seconds at most that a new process which is given up has for the requests that it has accepted.
_PATIENCE = 10.0
#: Seconds that are left to a manager that holds the old process back, and stops it when its own time is over.
_MARGIN = 2.0
#: Seconds that whoever waits for a reload is left waiting for a manager that does not answer.
_SILENCE = 10.0
#: Seconds, divided by the number of turns, that a command waits for old processes that only drain; and the share of the
#: time until then if that is more. So it can say what became of most, and a long request does not hold a deploy.
_DRAIN_WAIT, _DRAIN_SHARE = 4.0, 0.25


class _TurnRecord(NamedTuple):
    """A turn in `Rollout.record`; a field that is added later has a default."""

    number: int
    old: Process | None
    alone: bool
    state: State
    deadline: float | None
    newcomer: Process | None
    old_gone: bool
    newcomer_gone: str
    lost: str
    respawned_by: float | None
    stopped: str = ""
    old_stopped: bool = False
    overlaps: bool = False
    undrained: str = ""
    cost: Cost | None = None
    cut: str = ""


class _Record(NamedTuple):
    """What `Rollout.record` returns; a field that is added later has a default.

    Its own fields are of the foremost turn, whose old process is the first of *pending*: a broker of the version before
    knows of no other. For it the new ones of the other turns are among the *replaced*: it would have them stopped.
    """

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
    turns: list[dict[str, Any]] | None = None
    added: int = 0
    served: float | None = None
    notes: list[str] = []  # noqa: RUF012  never changed
    size: int | None = None
    costs: tuple[Cost, ...] = ()
    result: str = ""
    failed: Process | None = None
    left: str = ""
    is_sweeping: bool = False


@dataclass(slots=True)
class Turn:
    """One replacement.

    Attributes:
        number: By which answers to its questions are told from others'.
        old: The process that is replaced; None: there is one more from now on.
        alone: Nothing comes in the place of *old*.
        newcomer: The process that was started, once known.
        newcomer_gone: Why it died, if it did.
        lost: What became of the new one that this turn had before.
        respawned_by: Until when another one is waited for.
        stopped: Who of it the manager was told to stop by somebody else, in words; *old_stopped*: it is *old*.
        overlaps: The manager has one process more for it.
        undrained: Why *old* has its stop signal with requests in hand, if it has.
        cost: What the end of *old* has cost; None: it has not ended, or nobody was to look.
        cut: Why *old* may cut requests, by the plan of the reload that replaced it; empty: this one has.
    """

    number: int
    old: Process | None
    alone: bool = False
    state: State = State.START
    deadline: float | None = None
    newcomer: Process | None = None
    old_gone: bool = False
    newcomer_gone: str = ""
    lost: str = ""
    respawned_by: float | None = None
    stopped: str = ""
    old_stopped: bool = False
    overlaps: bool = False
    undrained: str = ""
    cost: Cost | None = None
    cut: str = ""
    settled: bool = False
    silence: str = ""  # why the manager has not answered
    lacking: str = ""  # what the new one was last seen to lack; seen anew by the next broker
    verified: str = ""

    @property
    def is_without_old(self) -> bool:
        """Whether there is no old process that could serve."""
        return self.old is None or self.old_gone


class _Question(NamedTuple):
    """What the manager has yet to answer."""

    turn: int
    is_start: bool
    state: State  # of the turn when it was asked


class Rollout:
    """One reload. `begin` or `recover` it, then `feed` it events, and perform the effects in order.

    Attributes:
        answered: Whether `Finish` was said, though the reload goes on: an old process drains, or the manager has yet to
            answer.
        began: When the reload began (monotonic seconds).

    Args:
        leaving: What a reload before left (`supersede`).
    """

    def __init__(self, plan: Plan, leaving: Iterable[Turn] = ()) -> None:
        self.plan = plan
        self._pending = list(plan.old)  # whose turn has not come
        self._added = plan.added  # how many are to be started beyond those
        self._size = plan.size - plan.added + len(plan.surplus)  # how many the manager is to have now, without overlap
        self._turns = list(leaving)
        self._count = max((turn.number for turn in self._turns), default=-1) + 1  # the number of the next turn
        self._replaced: list[Process] = []
        self.began = 0.0
        self.answered = False
        self._failure: tuple[ExitStatus, str] = (ExitStatus.OK, "")
        self._result = ""  # of the failure
        self._failed: Process | None = None  # whose it was
        self._served: float | None = None  # since when nothing is left to do but to let old ones drain
        self._notes: list[str] = []
        self._over = False
        self._is_waited_for = False  # the next reload's command waits for this one's to be told
        self._sweeping: int | None = None  # how many turns there were when what is left over began to be ended
        self._swept: int | None = None  # and when that was last done
        self._left = ""  # what it could not end, or see; in words
        self._costs: list[Cost] = []  # of each old process that has ended, where somebody was to look
        self._asked: _Question | None = None
        self._asking: list[Turn] = []  # who has yet to ask the manager

    # What the broker asks of it.

    @property
    def state(self) -> State:
        """Where it is: the state of its foremost turn."""
        if self._over:
            return State.ENDED
        if self._front is None:
            return State.START if self._sweeping is None else State.SWEEP
        return self._front.state

    @property
    def deadline(self) -> float | None:
        """When `Tick` is next due (monotonic seconds), or None."""
        if self._over:
            return None
        times = [turn.deadline for turn in self._turns if turn.deadline is not None]
        if self._served is not None and not self.answered and self._sweeping is None:
            times.append(self._answer_at)
        return min(times, default=None)

    @property
    def newcomer(self) -> Process | None:
        """The process that the foremost turn has started, once known."""
        return None if self._front is None else self._front.newcomer

    @property
    def old(self) -> Process | None:
        """The process that the foremost turn replaces."""
        return None if self._front is None else self._front.old

    @property
    def processes(self) -> list[Process]:
        """All that take part, as far as they are known and live."""
        found = [*self._pending]
        for turn in self._turns:
            found += [] if turn.old is None or turn.old_gone else [turn.old]
            found += [] if turn.newcomer is None or turn.newcomer_gone else [turn.newcomer]
        return found

    @property
    def draining(self) -> list[Process]:
        """The old ones that take nothing new, and have not ended."""
        return [turn.old for turn in self._turns if turn.state in _LEAVING and turn.old and not turn.old_gone]

    def is_stopping(self, pid: int) -> bool:
        """Whether *pid* is an old process that has its stop signal, or the manager has been asked for it."""
        return any(turn.old is not None and turn.old.pid == pid and turn.state is State.STOP for turn in self._turns)

    @property
    def suspends(self) -> frozenset[int]:
        """The pids whose registrations this reload claims to have suspended: nobody else may resume them."""
        return frozenset(pid for turn in self._turns if (pid := _suspended_in(turn)) is not None)

    @property
    def holds_back(self) -> int | None:
        """The pid of the new process that is not to have anything yet that only some may have."""
        turn = self._front
        if turn is None or turn.newcomer is None or turn.old_gone or turn.state not in (State.WARM, State.HOLD):
            return None
        return turn.newcomer.pid

    @property
    def awaited(self) -> list[Process]:
        """The processes that have yet to become ready."""
        found = [turn for turn in self._turns if turn.state in (State.WARM, State.RESPAWN)]
        return [turn.newcomer for turn in found if turn.newcomer and not turn.newcomer_gone]

    @property
    def held(self) -> list[Process]:
        """The processes that are ready, and have to stay so for `ready_hold`."""
        return [turn.newcomer for turn in self._turns if turn.state is State.HOLD and turn.newcomer]

    @property
    def is_proven(self) -> bool:
        """Whether no new process, of whichever turn, has yet to show that it serves."""
        return not any(turn.state in (State.WARM, State.HOLD, State.RESPAWN) for turn in self._turns)

    @property
    def cost(self) -> Cost | None:
        """What the ends of old processes have cost until now; None as long as nobody has looked at one."""
        return total(self._costs) if self._costs else None

    def is_replaced(self, pid: int) -> bool:
        """Whether *pid* is an old process in whose place another serves: its end may be told a moment later."""
        return any(turn.old is not None and turn.old.pid == pid and turn.state in _REPLACED for turn in self._turns)

    def concerns(self, pid: int) -> bool:
        """Whether it matters why *pid* has died: it is in the middle of its turn, and was not told to stop."""
        for turn in self._turns:
            if turn.newcomer is not None and turn.newcomer.pid == pid and turn.state not in _UNDONE:
                return True
            if turn.old is not None and turn.old.pid == pid and turn.state not in (State.STOP, *_UNDONE):
                return True
        return False

    def successor_of(self, pid: int) -> Process | None:
        """The process that has come in the place of *pid*."""
        return next((turn.newcomer for turn in self._turns if turn.old and turn.old.pid == pid), None)

    def state_of(self, number: int) -> State:
        """Where the turn *number* is."""
        return next((turn.state for turn in self._turns if turn.number == number), State.ENDED)

    def may_keep_waiting(self, now: float) -> float:
        """Seconds for which the manager need not hear of an undo yet, as what is given up has something in hand."""
        if self.plan.newcomer is None:
            return self._patience
        # It is the manager's own command: at the end of its stop timeout the old one would be stopped, too.
        return max(0.0, min(self._patience, self.began + self.plan.stop_timeout - _MARGIN - now))

    @property
    def only_drains(self) -> bool:
        """Whether nothing is left to do but to let old processes drain, or to end what they have left: another reload
        may `supersede` this one, once it has been `answered`."""
        return not self._over and (self._serves or (self.answered and not self._turns))

    def is_new(self, pid: int) -> bool:
        """Whether *pid* is a process that this reload has had started, and that has not been told to stop."""
        return any(
            turn.newcomer is not None and turn.newcomer.pid == pid and turn.state not in _UNDONE for turn in self._turns
        )

    def is_waited_for(self, pid: int) -> bool:
        """Whether an old process is suspended in favour of *pid*, a new one."""
        return any(
            turn.newcomer is not None and turn.newcomer.pid == pid and _suspended_in(turn) not in (None, pid)
            for turn in self._turns
        )

    def amend(self, pid: int, said: str, known: str) -> None:
        """Let the reason of a failure be what is *known* by now of the death of *pid*, instead of what was *said*."""
        status, reason = self._failure
        self._failure = (status, reason.replace(f"(pid {pid}) {said}", f"(pid {pid}) {known}"))

    def begin(self, now: float) -> list[Effect]:
        """Begin the first turn."""
        self.began = now
        effects: list[Effect] = []
        for turn in self._turns:
            effects += self._enter_leaving_again(turn, now)
        if not self._is_to_come:
            return [
                *effects,
                *self._fail(None, ExitStatus.INTERNAL, "it has no running process"),
                *self._go_on(now),
            ]
        return [*effects, *self._go_on(now)]

    def hurry(self, now: float) -> list[Effect]:
        """Have the command told as soon as what is left over has ended, whatever drains still."""
        self._is_waited_for = True
        return self._go_on(now)

    def supersede(self, now: float) -> list[Turn]:
        """End this reload, which `only_drains` and is `answered`: the turns that the next one is given."""
        turns, self._turns, self._over = self._turns, [], True
        for turn in turns:
            turn.newcomer, turn.newcomer_gone, turn.alone = None, "", True  # it is one of the next reload's
            turn.cut = turn.cut or self.plan.cut
            if turn.state is State.DRAIN and self.plan.hand_over:
                turn.deadline = now  # to whom it hands its connections may go next
                turn.undrained = "the next reload came before it had handed its connections over"
        return turns

    def feed(self, event: Event, now: float) -> list[Effect]:
        """Take *event* at *now* (monotonic seconds); one that means nothing in this state changes nothing."""
        if isinstance(event, Gone | Stopped) and event.pid in [old.pid for old in self._pending]:
            # One whose turn has not come died by itself: the manager starts it anew, with the new version.
            gone = next(old for old in self._pending if old.pid == event.pid)
            self._pending.remove(gone)
            if isinstance(event, Stopped):
                self._notes.append(f"{_named(gone)} was stopped by its manager meanwhile")
            return self._go_on(now)
        effects: list[Effect] = []
        if isinstance(event, Swept) and event.of is None:
            effects += self._all_swept(event, now)
        for turn in self._concerned(event):
            transition = _TRANSITIONS.get((turn.state, type(event)))
            if transition is not None:
                effects += transition(self, turn, event, now)
        return [*effects, *self._ask_next(), *self._go_on(now)]

    def _concerned(self, event: Event) -> list[Turn]:
        """The turns that are to take *event*; the manager's answer to a question that was another is nobody's."""
        if not isinstance(event, Started | StartRefused | Settled | SettleRefused):
            return list(self._turns)
        turns = [turn for turn in self._turns if turn.number == event.turn]
        is_start = isinstance(event, Started | StartRefused)
        asked = self._asked
        if asked is None or (asked.turn, asked.is_start) != (event.turn, is_start):
            return turns
        self._asked = None
        for turn in turns:
            if isinstance(event, Settled):
                turn.overlaps = False
        return [turn for turn in turns if turn.state is asked.state]

    def record(self) -> dict[str, Any]:
        """What a later broker needs to `recover` this rollout: JSON values only."""
        front = self._front or Turn(self._count, None)
        pending = [*([front.old] if front.old and front in self._turns else []), *self._pending]
        others = [
            turn.newcomer for turn in self._turns if turn.newcomer and turn is not front and turn.state in _LEAVING
        ]
        return {
            "plan": {**self.plan._asdict(), "old": [list(old) for old in self.plan.old]},
            "state": self.state.value,
            "deadline": front.deadline,
            "newcomer": front.newcomer and list(front.newcomer),
            "pending": [list(old) for old in pending],
            "replaced": [list(new) for new in (*self._replaced, *others)],
            "began": self.began,
            "old_gone": front.old_gone,
            "newcomer_gone": front.newcomer_gone,
            "lost": front.lost,
            "respawned_by": front.respawned_by,
            "answered": self.answered,
            "failure": [int(self._failure[0]), self._failure[1]],
            "turns": [_recorded(turn) for turn in self._turns],
            "added": self._added,
            "served": self._served,
            "notes": self._notes,
            "size": self._size,
            "costs": [list(cost) for cost in self._costs],
            "result": self._result,
            "failed": self._failed and list(self._failed),
            "left": self._left,
            "is_sweeping": self._sweeping is not None,
        }

    @classmethod
    def recover(cls, record: Mapping[str, Any], now: float) -> tuple[Rollout, list[Effect]]:
        """The rollout of *record*, and the effects that bring it on its way again.

        Raises:
            ValueError: The record is not one of `record`'s, nor of a version that is a neighbour's.
        """
        found = named(_Record, record)
        rollout = cls(named(Plan, found.plan))
        rollout._pending, rollout._added = found.pending, found.added
        if found.turns is None:
            # Of the version before, which has one turn at a time.
            old = rollout._pending.pop(0) if rollout._pending else None
            turn = Turn(0, old, rollout.plan.alone, found.state, found.deadline, found.newcomer)
            turn.old_gone, turn.newcomer_gone, turn.lost = found.old_gone, found.newcomer_gone, found.lost
            turn.respawned_by = found.respawned_by
            rollout._turns = [] if found.state is State.ENDED else [turn]
        else:
            rollout._turns = [Turn(*named(_TurnRecord, one)) for one in found.turns]
            olds = [turn.old for turn in rollout._turns]
            rollout._pending = [old for old in found.pending if old not in olds]
        rollout._count = max((turn.number for turn in rollout._turns), default=-1) + 1
        newcomers = [turn.newcomer for turn in rollout._turns]
        rollout._replaced = [new for new in found.replaced if new not in newcomers]
        rollout.began = found.began
        rollout.answered = found.answered
        rollout._failure = found.failure
        rollout._result, rollout._failed, rollout._left = found.result, found.failed, found.left
        if not found.result and any(turn.state in _UNDONE for turn in rollout._turns):  # of the version before
            rollout._result = "failed" if found.failure[0] is ExitStatus.NOT_SERVING else "rolled_back"
        rollout._served = found.served
        rollout._size = rollout._size if found.size is None else found.size
        rollout._notes = list(found.notes)
        rollout._costs = list(found.costs)
        if found.is_sweeping:
            rollout._costs.append(Cost(0, 0, "the broker was replaced while it ended what was left over"))
        rollout._over = found.state is State.ENDED
        effects: list[Effect] = []
        for turn in list(rollout._turns):
            effects += rollout._enter_again(turn, now)
        return rollout, [*effects, *rollout._go_on(now)]

    # Entering states.

    def _enter_again(self, turn: Turn, now: float) -> list[Effect]:
        goes_on = bool(self._replaced) or turn.old_gone or len(self._turns) > 1
        if turn.state in (State.START, State.WARM, State.HOLD) and not goes_on:
            return self._undo(turn, ExitStatus.ROLLED_BACK, "the broker was restarted before the switch", now)
        if turn.state is State.START:
            # Whether the manager started one is not known: have it drop any that is too many, then start one.
            turn.settled = False
            return self._ask(turn)
        if turn.state is State.HOLD:
            turn.state = State.WARM  # readiness is shown anew
            turn.deadline = now + self.plan.ready_timeout
        if turn.state is State.SWITCH:
            return self._enter_switch(turn, now)
        if turn.state in (State.VERIFY, State.QUIESCE) and turn.old is not None:
            again: list[Effect] = [Suspend(turn.old.pid)]
            if turn.state is State.VERIFY and turn.newcomer is not None:
                # While its answer was waited for the roles may have been exchanged.
                again = [Resume(turn.newcomer.pid), *again, Verify(turn.newcomer.pid)]
            return again
        if turn.state in _LEAVING:
            return self._enter_leaving_again(turn, now)
        if turn.state is State.UNDO:
            return self._enter_undo(turn, now)
        if turn.state is State.SWEEP:
            return self._enter_sweep(turn)
        # The manager was asked to have one process less, and what it answered went to the broker before.
        effects = self._ask(turn) if turn.old_gone and turn.overlaps else []
        return [*effects, self._find(turn)] if turn.state is State.RESPAWN and turn.newcomer_gone else effects

    def _enter_leaving_again(self, turn: Turn, now: float) -> list[Effect]:
        if turn.state is State.STOP:
            return [] if turn.settled else self._enter_stop(turn, now)
        assert turn.old is not None
        return [Suspend(turn.old.pid), *self._take_place(turn), self._drain(turn, turn.old)]

    def _begin_turn(self, now: float) -> list[Effect]:
        old = next((one for one in self._pending if one.pid not in self.plan.surplus), None)
        if old is None and not self._added:
            old = self._pending[0]
        if old is None:
            self._added -= 1
        else:
            self._pending.remove(old)
        alone = old is not None and (self.plan.alone or old.pid in self.plan.surplus)
        turn = Turn(self._count, old, alone)
        self._count += 1
        self._turns.append(turn)
        return self._enter_switch(turn, now) if alone else self._enter_start(turn, now)

    def _enter_start(self, turn: Turn, now: float) -> list[Effect]:
        turn.state, turn.deadline = State.START, None
        turn.newcomer, turn.newcomer_gone, turn.settled = None, "", True
        return self._ask(turn)

    def _enter_switch(self, turn: Turn, now: float) -> list[Effect]:
        turn.state, turn.deadline = State.SWITCH, None
        # In this order: there is never a moment when neither is registered.
        effects: list[Effect] = [] if turn.newcomer is None else [Resume(turn.newcomer.pid)]
        if turn.is_without_old:
            return [*effects, *self._take_place(turn), *self._enter_stop(turn, now)]
        assert turn.old is not None
        return [*effects, Suspend(turn.old.pid)]

    def _enter_respawn(self, turn: Turn, now: float) -> list[Effect]:
        assert turn.newcomer is not None
        turn.state, turn.lost = State.RESPAWN, f"{_named(turn.newcomer)} {turn.newcomer_gone}"
        if turn.respawned_by is None:
            turn.respawned_by = now + self.plan.ready_timeout
        turn.deadline = turn.respawned_by
        # The manager is told once more how many there are to be: so it need not wait for its next look.
        return [*self._ask(turn), self._find(turn)]

    def _enter_quiesce(self, turn: Turn, now: float, how: str) -> list[Effect]:
        turn.state, turn.deadline = State.QUIESCE, now + self.plan.quiesce
        turn.verified = how
        return []

    def _enter_drain(self, turn: Turn, now: float) -> list[Effect]:
        assert turn.old is not None
        if not self.plan.drain:
            alone = self._take_place(turn) if turn.newcomer is None else []
            return [*alone, self._report("drain", turn.old, now, self.plan.by_signal), *self._enter_stop(turn, now)]
        turn.state, turn.deadline = State.DRAIN, now + self.plan.drain_timeout
        how = f"from outside: {self.plan.drain}"
        if self.plan.hand_over:
            how = f"it hands its connections to {_named(turn.newcomer) if turn.newcomer else 'the others'}"
        return [*self._take_place(turn), self._report("drain", turn.old, now, how), self._drain(turn, turn.old)]

    def _enter_stop(self, turn: Turn, now: float) -> list[Effect]:
        if turn.state is not State.STOP and self._is_surplus(turn):
            self._size -= 1
        turn.state, turn.deadline = State.STOP, now + self.plan.stop_timeout + _STOP_GRACE
        turn.settled, turn.silence = False, ""
        return self._ask(turn)

    def _enter_undo(self, turn: Turn, now: float) -> list[Effect]:
        if turn.state is State.STOP and self._is_surplus(turn):
            self._size += 1
        if turn.state is not State.UNDO and turn.old is None and turn.newcomer is not None:
            self._size -= 1
        turn.state, turn.deadline = State.UNDO, now + self._patience + _STOP_GRACE
        turn.settled, turn.silence = False, ""
        effects: list[Effect] = []
        if turn.old is not None and not turn.old_gone and not turn.old_stopped:
            effects.append(Resume(turn.old.pid))
        if turn.newcomer is not None and not turn.newcomer_gone:
            # It may have accepted requests already, in the instant before it was held back or while it served: it may
            # finish those, and is to accept no more.
            effects.append(HoldBack(turn.newcomer.pid))
        return [*effects, *self._ask(turn)]

    def _enter_sweep(self, turn: Turn) -> list[Effect]:
        turn.state, turn.deadline = State.SWEEP, None  # who sweeps bounds his own time
        # The old version serves: only what the new one has left may be ended.
        return [Sweep(turn.newcomer and turn.newcomer.pid)]

    # Going on from one turn to the next, and to the end.

    @property
    def _front(self) -> Turn | None:
        for states in (_IN_FRONT, (*_UNDONE, State.RESPAWN)):
            found = [turn for turn in self._turns if turn.state in states]
            if found:
                return found[-1]
        return self._turns[-1] if self._turns else None

    @property
    def _serves(self) -> bool:
        """Whether what is left of the old version takes nothing new, and nothing more of the new one is to come."""
        failed = self._failure[0] is not ExitStatus.OK
        return bool(self._turns) and (failed or not self._is_to_come) and all(map(_leaves, self._turns))

    @property
    def _is_to_come(self) -> bool:
        return bool(self._pending or self._added)

    @property
    def _answer_at(self) -> float:
        """When the command is told, whatever drains still."""
        assert self._served is not None
        if self._is_waited_for:
            return self._served
        turns = max(1, len(self.plan.old) + self.plan.added)
        return self._served + max(_DRAIN_WAIT / turns, _DRAIN_SHARE * (self._served - self.began))

    def _go_on(self, now: float) -> list[Effect]:
        if self._over:
            return []
        effects: list[Effect] = []
        in_front = [turn for turn in self._turns if turn.state in _IN_FRONT]
        busy = [turn for turn in self._turns if turn.state not in _LEAVING]
        if self._failure[0] is not ExitStatus.OK:
            for turn in in_front:  # it has the version that another one has failed with
                effects += self._give_up(turn, now)
        elif self._is_to_come and not busy and (self._expired(now) or self.answered):
            self._fail(None, ExitStatus.TIMED_OUT, self._timed_out())
        elif self._is_to_come and not busy and len(self._turns) < self.plan.max_draining:
            effects += self._begin_turn(now)
        return [*effects, *self._end_if_over(now)]

    def _end_if_over(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        has_failed = self._failure[0] is not ExitStatus.OK
        is_through = not (has_failed or self._is_to_come or self._turns)
        if is_through and self._notes and not self._replaced and self.plan.old and not self.plan.alone:
            self._fail(None, ExitStatus.INTERNAL, f"{'; '.join(self._notes)}; nothing was replaced")
            has_failed = True
        if has_failed and all(map(_leaves, self._turns)) and not (self.answered and self._turns):
            effects += self._say_failed(now)
        if self._turns or (self._is_to_come and not has_failed):
            if not self.answered:
                self._served = (self._served or now) if self._serves else None
            is_ours = self.plan.newcomer is None and not self.plan.alone  # somebody waits for it
            if is_ours and not self.answered and self._served is not None and now >= self._answer_at:
                effects += self._sweep(now)
            return effects
        if has_failed:
            self._over = True
            return effects
        return [*effects, *self._sweep(now)]

    def _sweep(self, now: float) -> list[Effect]:
        """Say that it is done when what is left over has been ended; again where a turn has ended meanwhile."""
        if self._swept == len(self._turns):
            self._over = not self._turns
            return self._say_done(now)
        if self._sweeping is not None:
            return []
        self._sweeping = len(self._turns)
        return [Sweep()]

    def _all_swept(self, event: Swept, now: float) -> list[Effect]:
        if self._sweeping is None:
            return []
        self._swept, self._sweeping = self._sweeping, None
        effects: list[Effect] = []
        cost = sentence(event.cost)
        if event.cost is not None:
            self._costs.append(event.cost)
        if event.ended:
            reason = "; ".join(filter(None, (f"left over, and ended: {event.ended}", cost)))
            effects.append(self._report("stop", None, now, reason, event.cost))
        if event.cost is not None and event.cost.cut and self.answered:  # the last line was said without it
            effects.append(self._report("failed", None, now, f"when what was left over ended, {cost}"))
        serves = self._failure[0] is ExitStatus.OK and (self._serves or not self._turns)
        left = f", and so does {event.left}" if event.left else ""
        if event.unseen:
            left = f"; can't see whether anything that is left of the old one does: {event.unseen}"
        if left and left != self._left and serves:
            self._left = left
            effects += self._say_left(now)
        return effects

    def _say_left(self, now: float) -> list[Effect]:
        reason = "; ".join([f"the new version serves{self._left}", *self._what_drains, *self._notes])
        if self.answered:
            return [self._report("failed", self._newest, now, reason)]
        return self._tell("failed", self._newest, ExitStatus.NOT_SERVING, reason, now)

    @property
    def _what_drains(self) -> list[str]:
        return [
            f"{_named(old)} takes nothing new, and has up to {_limit(self.plan):g} s to finish what it has"
            for old in self.draining
        ]

    @property
    def _newest(self) -> Process | None:
        return self._replaced[-1] if self._replaced else self.newcomer

    def _say_done(self, now: float) -> list[Effect]:
        if self.answered:
            return []
        return self._tell("done", self._newest, ExitStatus.OK, "; ".join([*self._what_drains, *self._notes]), now)

    def _say_failed(self, now: float) -> list[Effect]:
        status, reason = self._failure
        if self.answered:  # of one that was said to be done it is news
            return [] if self._served is None else [self._report("failed", self._failed, now, reason)]
        self._served = None
        return self._tell(
            "rolled_back" if self._result == "rolled_back" else "failed", self._failed, status, reason, now
        )

    def _tell(self, step: str, process: Process | None, status: ExitStatus, reason: str, now: float) -> list[Effect]:
        """Tell the command what came of it, and what it has cost: its last line."""
        self.answered = True
        reason = "; ".join(filter(None, (reason, sentence(self.cost))))
        result = "ok" if step == "done" else step
        return [
            self._report(step, process, now, reason, self.cost),
            Finish(result, status, reason, self.cost),
        ]

    def _fail(self, turn: Turn | None, status: ExitStatus, reason: str) -> list[Effect]:
        """The reload has failed, with nothing to undo; the first reason is the one that is told."""
        if turn is not None:
            self._turns.remove(turn)
            self._failed = turn.newcomer
        if self._failure[0] is ExitStatus.OK or self._result == "rolled_back":
            self._failure, self._result = (status, reason), "failed"
        return []

    def _give_up(self, turn: Turn, now: float) -> list[Effect]:
        if turn.is_without_old and turn.old is not None and turn.newcomer is not None:
            return self._leave(turn, now)  # there is nobody to go back to, and the new one has the place already
        return self._enter_undo(turn, now)

    def _leave(self, turn: Turn, now: float) -> list[Effect]:
        """Nothing more comes of *turn*, when the manager knows that it has one process less."""
        if turn.overlaps:
            return self._enter_stop(turn, now)
        self._end(turn)
        return []

    def _end(self, turn: Turn) -> None:
        self._turns.remove(turn)
        if turn.newcomer is not None and not turn.newcomer_gone:
            self._replaced.append(turn.newcomer)
        if turn.stopped:
            self._notes.append(turn.stopped)

    # Transitions.

    def _started(self, turn: Turn, event: Started, now: float) -> list[Effect]:
        turn.state, turn.newcomer, turn.deadline = State.WARM, event.process, now + self.plan.ready_timeout
        turn.overlaps, turn.lacking = turn.old is not None, ""
        self._size += turn.old is None
        effects: list[Effect] = [self._report("start", turn.newcomer, now)]
        return [*effects, *self._ask(turn)] if turn.old_gone else effects

    def _start_refused(self, turn: Turn, event: StartRefused | SettleRefused, now: float) -> list[Effect]:
        if event.silent:
            return self._undo(turn, ExitStatus.INTERNAL, event.reason, now)
        if self._replaced or len(self._turns) > 1:
            return self._undo(turn, ExitStatus.ROLLED_BACK, event.reason, now)
        return self._fail(turn, ExitStatus.INTERNAL, event.reason)

    def _respawned(self, turn: Turn, event: Started, now: float) -> list[Effect]:
        turn.newcomer, turn.newcomer_gone = event.process, ""
        return [self._report("start", turn.newcomer, now, f"in its place: {turn.lost}")]

    def _not_respawned(self, turn: Turn, event: StartRefused, now: float) -> list[Effect]:
        reason = f"{turn.lost}, with no old process to go back to; {event.reason}"
        self._failed, turn.newcomer, turn.newcomer_gone = turn.newcomer, None, ""
        return [*self._fail(None, ExitStatus.NOT_SERVING, reason), *self._leave(turn, now)]

    def _gone_in_respawn(self, turn: Turn, event: Gone, now: float) -> list[Effect]:
        if turn.newcomer_gone or turn.newcomer is None or event.pid != turn.newcomer.pid:
            return []
        turn.newcomer_gone = event.reason
        turn.lost = f"{_named(turn.newcomer)} {event.reason}"
        return self._leave(turn, now) if turn.stopped else [self._find(turn)]

    def _tick_respawn(self, turn: Turn, event: Tick, now: float) -> list[Effect]:
        if not _due(turn, now):
            return []
        refused = StartRefused(f"no other one was ready within {self.plan.ready_timeout:g} s")
        return self._not_respawned(turn, refused, now)

    def _start_settled(self, turn: Turn, event: Settled, now: float) -> list[Effect]:
        # Only after `recover`; otherwise nothing was asked to settle in this state.
        return [] if turn.settled else self._enter_start(turn, now)

    def _registered(self, turn: Turn, event: Registered, now: float) -> list[Effect]:
        if turn.newcomer is None or event.pid != turn.newcomer.pid or turn.old_gone:
            return []
        return [HoldBack(turn.newcomer.pid)]

    def _unready(self, turn: Turn, event: Unready, now: float) -> list[Effect]:
        if turn.newcomer is not None and event.pid == turn.newcomer.pid:
            turn.lacking = event.reason
        return []

    def _unready_in_hold(self, turn: Turn, event: Unready, now: float) -> list[Effect]:
        if turn.newcomer is None or event.pid != turn.newcomer.pid or turn.stopped:
            return []
        return self._undo(turn, ExitStatus.ROLLED_BACK, f"{_named(turn.newcomer)} {event.reason}", now)

    def _ready(self, turn: Turn, event: Ready, now: float) -> list[Effect]:
        if turn.newcomer is None or event.pid != turn.newcomer.pid:
            return []
        turn.state, turn.deadline = State.HOLD, now + self.plan.ready_hold
        effects: list[Effect] = [] if turn.old_gone else [HoldBack(turn.newcomer.pid)]
        return [*effects, self._report("ready", turn.newcomer, now, event.how)]

    def _stopped(self, turn: Turn, event: Stopped, now: float) -> list[Effect]:
        if turn.old is not None and event.pid == turn.old.pid:
            # It is no process of the program any more, so nothing comes in its place.
            turn.stopped, turn.old_stopped = f"{_named(turn.old)} was stopped by its manager meanwhile", True
            return self._enter_undo(turn, now)
        return self._new_stopped(turn, event, now)

    def _new_stopped(self, turn: Turn, event: Stopped, now: float) -> list[Effect]:
        if turn.newcomer is not None and event.pid == turn.newcomer.pid:
            turn.stopped = f"{_named(turn.newcomer)} was stopped by its manager meanwhile"
        return []

    def _gone(self, turn: Turn, event: Gone, now: float) -> list[Effect]:
        if turn.newcomer is not None and event.pid == turn.newcomer.pid:
            turn.newcomer_gone = event.reason
            if turn.old_gone:
                return self._enter_respawn(turn, now)
            reason, turn.stopped = turn.stopped or f"{_named(turn.newcomer)} {event.reason}", ""
            return self._undo(turn, ExitStatus.ROLLED_BACK, reason, now)
        if turn.old is not None and event.pid == turn.old.pid:
            self._old_has_gone(turn, event)
            if turn.state in (State.SWITCH, State.VERIFY, State.QUIESCE, State.DRAIN):
                # Until its page has answered, it is the new one that is suspended.
                return [*([Resume(turn.newcomer.pid)] if turn.newcomer else []), *self._enter_stop(turn, now)]
            if turn.newcomer is not None:
                # Its place is the new one's, at once: the manager has none to start for it.
                return [Resume(turn.newcomer.pid), *self._ask(turn)]
        return []

    def _tick_start(self, turn: Turn, event: Tick, now: float) -> list[Effect]:
        return self._undo_if_expired(turn, now)

    def _tick_warm(self, turn: Turn, event: Tick, now: float) -> list[Effect]:
        if _due(turn, now):
            assert turn.newcomer is not None
            lacking = turn.lacking or f"no sign of {self.plan.awaited}"
            reason = f"was not ready within {self.plan.ready_timeout:g} s: {lacking}"
            return self._undo(turn, ExitStatus.TIMED_OUT, f"{_named(turn.newcomer)} {reason}", now)
        return self._undo_if_expired(turn, now)

    def _tick_hold(self, turn: Turn, event: Tick, now: float) -> list[Effect]:
        if not _due(turn, now):
            return self._undo_if_expired(turn, now)
        return [self._report("hold", turn.newcomer, now), *self._enter_switch(turn, now)]

    def _switched(self, turn: Turn, event: Switched, now: float) -> list[Effect]:
        report = self._report("switch", turn.newcomer, now, event.how)
        if self.plan.verify and turn.newcomer is not None:
            turn.state, turn.deadline = State.VERIFY, now + self.plan.ready_timeout
            return [report, Verify(turn.newcomer.pid)]
        return [report, *self._enter_quiesce(turn, now, "")]

    def _verify_passed(self, turn: Turn, event: Verified, now: float) -> list[Effect]:
        return self._enter_quiesce(turn, now, event.how)

    def _verify_failed(self, turn: Turn, event: VerifyFailed, now: float) -> list[Effect]:
        return self._undo(turn, ExitStatus.ROLLED_BACK, event.reason, now)

    def _tick_verify(self, turn: Turn, event: Tick, now: float) -> list[Effect]:
        if not _due(turn, now):
            return self._undo_if_expired(turn, now)
        reason = f"{self.plan.verify} has not answered from the new process within {self.plan.ready_timeout:g} s"
        return self._undo(turn, ExitStatus.TIMED_OUT, reason, now)

    def _tick_quiesce(self, turn: Turn, event: Tick, now: float) -> list[Effect]:
        if not _due(turn, now):
            return []
        return [self._report("quiesce", turn.old, now, turn.verified), *self._enter_drain(turn, now)]

    def _drained(self, turn: Turn, event: Drained, now: float) -> list[Effect]:
        if turn.old is None or event.pid not in (0, turn.old.pid):
            return []
        return [self._report("drain", turn.old, now, event.how), *self._enter_stop(turn, now)]

    def _tick_drain(self, turn: Turn, event: Tick, now: float) -> list[Effect]:
        if not _due(turn, now):
            return []
        turn.undrained = turn.undrained or f"they took longer than drain_timeout, {self.plan.drain_timeout:g} s"
        return self._drained(turn, Drained(f"given up after {self.plan.drain_timeout:g} s"), now)

    def _gone_in_stop(self, turn: Turn, event: Gone, now: float) -> list[Effect]:
        if turn.newcomer is not None and event.pid == turn.newcomer.pid:
            turn.newcomer_gone = event.reason
        elif turn.old is not None and event.pid == turn.old.pid:
            self._old_has_gone(turn, event)
        return self._end_turn_if_drained(turn, now)

    def _stop_settled(self, turn: Turn, event: Settled, now: float) -> list[Effect]:
        if event.stopped:
            return self._fail(turn, ExitStatus.NOT_SERVING, f"{self.plan.program} was stopped meanwhile")
        turn.settled, turn.deadline = True, now + self.plan.stop_timeout + _STOP_GRACE
        return self._end_turn_if_drained(turn, now)

    def _stop_refused(self, turn: Turn, event: SettleRefused, now: float) -> list[Effect]:
        if event.silent:
            # It may have its stop signal already, so there is no way back.
            return self._ask_again(turn, event.reason, now)
        # The old one is suspended but was not told to stop: it is still whole, so it takes over again.
        return self._undo(turn, ExitStatus.INTERNAL, event.reason, now)

    def _tick_stop(self, turn: Turn, event: Tick, now: float) -> list[Effect]:
        if not _due(turn, now):
            return []
        if not turn.settled:
            reason = turn.silence or "the manager does not answer"
            reason += "; the new process serves, and the old one is stopped as soon as it does"
            return self._answer(turn, self._failure[1] or reason, now)
        old = "it" if turn.old is None else _named(turn.old)
        reason = f"{old} has not ended {self.plan.stop_timeout + _STOP_GRACE:g} s after its stop signal"
        return self._fail(turn, ExitStatus.TIMED_OUT, reason)

    def _end_turn_if_drained(self, turn: Turn, now: float) -> list[Effect]:
        if not (turn.settled and turn.is_without_old):
            return []
        effects: list[Effect] = []
        if turn.old is not None and not turn.lost:
            reason = sentence(turn.cost)
            effects.append(self._report("stop", turn.old, now, reason, turn.cost))
            if self.answered and turn.cost is not None and turn.cost.cut:  # the last line was said without it
                effects.append(self._report("failed", turn.old, now, f"when {_named(turn.old)} ended, {reason}"))
        if turn.newcomer_gone and not turn.stopped:
            return [*effects, *self._enter_respawn(turn, now)]
        self._end(turn)
        return effects

    def _old_has_gone(self, turn: Turn, event: Gone) -> None:
        turn.old_gone = True
        if event.cost is None or turn.state not in _REPLACED:
            return
        turn.cost = event.cost._replace(cause=self._why_cut(turn, event.reason) if event.cost.cut else "")
        self._costs.append(turn.cost)

    def _why_cut(self, turn: Turn, end: str) -> str:
        if turn.undrained:
            return turn.undrained
        if end == KILLED:
            return f"it was killed, as it had not ended {self.plan.stop_timeout:g} s after its stop signal"
        if turn.state is not State.STOP:
            return f"it {end}"
        return turn.cut or self.plan.cut

    def _cancelled(self, turn: Turn, event: Cancelled, now: float) -> list[Effect]:
        return self._undo(turn, ExitStatus.ROLLED_BACK, event.reason, now)

    def _undo_settled(self, turn: Turn, event: Settled, now: float) -> list[Effect]:
        turn.settled, turn.deadline = True, now + self._patience + _STOP_GRACE
        if event.stopped:
            self._failure = (ExitStatus.NOT_SERVING, f"{self.plan.program} was stopped meanwhile")
            self._result, turn.stopped = "failed", ""
        return self._end_if_undone(turn, now)

    def _gone_in_undo(self, turn: Turn, event: Gone, now: float) -> list[Effect]:
        if turn.newcomer is not None and event.pid == turn.newcomer.pid:
            turn.newcomer_gone = event.reason
        elif turn.old is not None and event.pid == turn.old.pid:
            turn.old_gone = True
        return self._end_if_undone(turn, now)

    def _end_if_undone(self, turn: Turn, now: float) -> list[Effect]:
        if not turn.settled or (turn.newcomer is not None and not turn.newcomer_gone):
            return []
        return self._end_undone(turn, Swept(), now) if turn.newcomer is None else self._enter_sweep(turn)

    def _gone_in_sweep(self, turn: Turn, event: Gone, now: float) -> list[Effect]:
        if turn.old is not None and event.pid == turn.old.pid:
            turn.old_gone = True
        return []

    def _swept_undone(self, turn: Turn, event: Swept, now: float) -> list[Effect]:
        if turn.newcomer is None or event.of != turn.newcomer.pid:
            return []
        return self._end_undone(turn, event, now)

    def _end_undone(self, turn: Turn, swept: Swept, now: float) -> list[Effect]:
        status, reason = self._failure
        if turn.old_gone and turn.old is not None and not turn.old_stopped and status is not ExitStatus.NOT_SERVING:
            self._failure = ExitStatus.NOT_SERVING, f"{reason}; and {_named(turn.old)} has died meanwhile"
            self._result = "failed"
        if swept.left or swept.unseen:
            beside = f"and what it has left serves beside the old one: {swept.left}"
            if swept.unseen:
                beside = f"can't see whether what it has left serves beside the old one: {swept.unseen}"
            reason = f"{self._failure[1] or turn.stopped}; {beside}"
            self._failure, self._result = (ExitStatus.NOT_SERVING, reason), "failed"
        elif self._failure[0] is ExitStatus.ROLLED_BACK and turn.old is not None and swept.unserved:
            reason = f"{self._failure[1]}; and {_named(turn.old)}, which stays, is not seen to serve {swept.unserved}"
            self._failure, self._result = (ExitStatus.NOT_SERVING, reason), "failed"
        if self._result == "rolled_back":
            self._failed = turn.old
        self._end(turn)
        return []

    def _undo_refused(self, turn: Turn, event: SettleRefused, now: float) -> list[Effect]:
        if event.silent:
            return self._ask_again(turn, event.reason, now)
        reason = "; ".join(
            one for one in (self._failure[1] or turn.stopped, f"and can't roll back: {event.reason}") if one
        )
        self._failure, self._result = (ExitStatus.INTERNAL, reason), "failed"
        return self._fail(turn, *self._failure)

    def _tick_undo(self, turn: Turn, event: Tick, now: float) -> list[Effect]:
        if not _due(turn, now):
            return []
        if not turn.settled:
            reason = self._failure[1] or turn.stopped
            reason += "; the old process serves, and the new one goes as soon as the manager answers"
            return self._answer(turn, reason, now)
        return self._undo_refused(turn, SettleRefused("the new process has not ended"), now)

    # Parts of the above.

    @property
    def _patience(self) -> float:
        return min(self.plan.stop_timeout, _PATIENCE)

    def _ask(self, turn: Turn) -> list[Effect]:
        """Ask the manager what *turn* needs of it: now, or when it has answered what it was asked before."""
        asked = self._asked
        # Its own question of a start is not waited for: what that may have started is dropped.
        if asked is not None and not (asked.turn == turn.number and asked.is_start):
            if turn not in self._asking:
                self._asking.append(turn)
            return []
        is_start = turn.state is State.START and turn.settled
        self._asked = _Question(turn.number, is_start, turn.state)
        if is_start:
            return [Start(turn.number, None if turn.old is None else turn.old.pid)]
        if turn.state is State.STOP:
            return [self._settle(turn, () if turn.is_without_old else (turn.old.pid,), kill=False)]  # type: ignore[union-attr]
        if turn.state is State.UNDO:
            return [self._settle_undo(turn)]
        return [self._settle(turn, (), kill=turn.state is State.START)]

    def _ask_next(self) -> list[Effect]:
        effects: list[Effect] = []
        while self._asking and self._asked is None:
            effects += self._ask(self._asking.pop(0))
        return effects

    def _ask_again(self, turn: Turn, reason: str, now: float) -> list[Effect]:
        # No pause: each question waits for its answer as long as its manager's host has patience.
        if not turn.silence:
            turn.silence = reason
            turn.deadline = None if self.answered else now + _SILENCE
        return self._ask(turn)

    def _answer(self, turn: Turn, reason: str, now: float) -> list[Effect]:
        answered, self.answered, turn.deadline = self.answered, True, None
        if answered:
            return []
        return [self._report("failed", turn.newcomer, now, reason), Finish("failed", ExitStatus.INTERNAL, reason)]

    def _drain(self, turn: Turn, old: Process) -> Effect:
        return HandOver(old.pid, turn.newcomer) if self.plan.hand_over else Drain(old.pid)

    def _take_place(self, turn: Turn) -> list[Effect]:
        if turn.old_gone or self.plan.newcomer is not None or self.plan.alone:
            return []
        return [TakePlace(turn.old and turn.old.pid, turn.newcomer and turn.newcomer.pid)]

    def _settle_undo(self, turn: Turn) -> Settle:
        return self._settle(turn, () if turn.newcomer is None else (turn.newcomer.pid,), kill=True)

    def _find(self, turn: Turn) -> Find:
        return Find(tuple(process.pid for process in self._known()), turn.number)

    def _undo(self, turn: Turn, status: ExitStatus, reason: str, now: float) -> list[Effect]:
        if turn.old_gone and turn.old is not None and turn.newcomer is not None:
            # There is nobody to go back to, and the new one has the place already.
            reason += f"; and {_named(turn.old)} has died meanwhile, so that the new process stays"
            self._failed = turn.newcomer
            return [*self._fail(None, ExitStatus.NOT_SERVING, reason), *self._leave(turn, now)]
        others = [one for one in self._turns if one is not turn and one.state in _LEAVING]
        if self._replaced or others:
            done = len(self._replaced) + len(others)
            total = len(self._replaced) + len(self._turns) + len(self._pending)
            reason += f"; {done} of {total} processes run the new version already"
        if self._failure[0] is ExitStatus.OK:
            self._failure, self._result = (status, reason), "rolled_back"
        return [self._report("failed", turn.newcomer, now, reason), *self._enter_undo(turn, now)]

    def _undo_if_expired(self, turn: Turn, now: float) -> list[Effect]:
        return self._undo(turn, ExitStatus.TIMED_OUT, self._timed_out(), now) if self._expired(now) else []

    def _timed_out(self) -> str:
        return f"the reload of {self.plan.program} was not over within its --timeout"

    def _expired(self, now: float) -> bool:
        return self.plan.expires is not None and now >= self.plan.expires

    def _settle(self, turn: Turn, retire: Iterable[int], *, kill: bool) -> Settle:
        retired = tuple(retire)
        known = tuple(process.pid for process in self._known() if process.pid not in retired)
        size = self._size + sum(one.overlaps for one in self._turns if one is not turn)
        return Settle(retired, known, size, kill, self._patience if kill else 0.0, turn.number)

    def _is_surplus(self, turn: Turn) -> bool:
        return turn.old is not None and turn.old.pid in self.plan.surplus

    def _known(self) -> list[Process]:
        olds = [turn.old for turn in self._turns if turn.old is not None]
        return [*olds, *self._pending, *self._replaced, *(turn.newcomer for turn in self._turns if turn.newcomer)]

    def _report(
        self, step: str, process: Process | None, now: float, reason: str = "", cost: Cost | None = None
    ) -> Report:
        return Report(step, process, round(now - self.began, 3), reason, cost)


def _suspended_in(turn: Turn) -> int | None:
    if turn.state in (State.SWITCH, State.VERIFY, State.QUIESCE, State.DRAIN, State.STOP):
        return turn.old and turn.old.pid
    if turn.state in (State.WARM, State.HOLD):
        return None if turn.old_gone else turn.newcomer and turn.newcomer.pid
    if turn.state is State.UNDO and not turn.newcomer_gone:
        # It is on its way out: what it accepted now might go with it.
        return turn.newcomer and turn.newcomer.pid
    return None


def _leaves(turn: Turn) -> bool:
    """Whether the old process of *turn* takes nothing new, and the manager has been told all that it has to be."""
    return turn.state in _LEAVING and not turn.newcomer_gone and (turn.state is State.DRAIN or turn.settled)


def _due(turn: Turn, now: float) -> bool:
    return turn.deadline is not None and now >= turn.deadline


def _limit(plan: Plan) -> float:
    """Seconds that an old process has at most, from the end of its quiescence on."""
    return plan.stop_timeout + (plan.drain_timeout if plan.drain else 0.0)


def _recorded(turn: Turn) -> dict[str, Any]:
    values = {name: getattr(turn, name) for name in _TurnRecord._fields}
    for name in ("old", "newcomer", "cost"):
        values[name] = values[name] and list(values[name])
    return {**values, "state": turn.state.value}


_Transition = Callable[[Rollout, Turn, Any, float], "list[Effect]"]

#: All transitions: what is not here changes nothing.
_TRANSITIONS: dict[tuple[State, type], _Transition] = {
    (State.START, Started): Rollout._started,
    (State.START, StartRefused): Rollout._start_refused,
    (State.START, Settled): Rollout._start_settled,
    (State.START, SettleRefused): Rollout._start_refused,
    (State.START, Gone): Rollout._gone,
    (State.START, Stopped): Rollout._stopped,
    (State.START, Tick): Rollout._tick_start,
    (State.START, Cancelled): Rollout._cancelled,
    (State.WARM, Registered): Rollout._registered,
    (State.WARM, Unready): Rollout._unready,
    (State.WARM, Ready): Rollout._ready,
    (State.WARM, Gone): Rollout._gone,
    (State.WARM, Stopped): Rollout._stopped,
    (State.WARM, Tick): Rollout._tick_warm,
    (State.WARM, Cancelled): Rollout._cancelled,
    (State.HOLD, Unready): Rollout._unready_in_hold,
    (State.HOLD, Gone): Rollout._gone,
    (State.HOLD, Stopped): Rollout._stopped,
    (State.HOLD, Tick): Rollout._tick_hold,
    (State.HOLD, Cancelled): Rollout._cancelled,
    (State.SWITCH, Switched): Rollout._switched,
    (State.SWITCH, Gone): Rollout._gone,
    (State.SWITCH, Stopped): Rollout._stopped,
    (State.SWITCH, Cancelled): Rollout._cancelled,
    (State.VERIFY, Verified): Rollout._verify_passed,
    (State.VERIFY, VerifyFailed): Rollout._verify_failed,
    (State.VERIFY, Gone): Rollout._gone,
    (State.VERIFY, Stopped): Rollout._stopped,
    (State.VERIFY, Tick): Rollout._tick_verify,
    (State.VERIFY, Cancelled): Rollout._cancelled,
    (State.QUIESCE, Gone): Rollout._gone,
    (State.QUIESCE, Stopped): Rollout._stopped,
    (State.QUIESCE, Tick): Rollout._tick_quiesce,
    (State.DRAIN, Drained): Rollout._drained,
    (State.DRAIN, Gone): Rollout._gone,
    (State.DRAIN, Stopped): Rollout._new_stopped,  # the old one has no place any more: that it goes is no news
    (State.DRAIN, Tick): Rollout._tick_drain,
    (State.STOP, Gone): Rollout._gone_in_stop,
    (State.STOP, Stopped): Rollout._new_stopped,
    (State.STOP, Settled): Rollout._stop_settled,
    (State.STOP, SettleRefused): Rollout._stop_refused,
    (State.STOP, Tick): Rollout._tick_stop,
    (State.RESPAWN, Started): Rollout._respawned,
    (State.RESPAWN, StartRefused): Rollout._not_respawned,
    (State.RESPAWN, Ready): Rollout._ready,
    (State.RESPAWN, Gone): Rollout._gone_in_respawn,
    (State.RESPAWN, Stopped): Rollout._new_stopped,
    (State.RESPAWN, Tick): Rollout._tick_respawn,
    (State.UNDO, Settled): Rollout._undo_settled,
    (State.UNDO, Gone): Rollout._gone_in_undo,
    (State.UNDO, SettleRefused): Rollout._undo_refused,
    (State.UNDO, Tick): Rollout._tick_undo,
    (State.SWEEP, Gone): Rollout._gone_in_sweep,
    (State.SWEEP, Swept): Rollout._swept_undone,
}


def _named(process: Process) -> str:
    return f"{process.name} (pid {process.pid})"
