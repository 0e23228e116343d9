"""The vocabulary of a reload: what is planned, what may happen (events), what is to be done (effects).

Events and effects are data classes: two are equal only if they are of one kind. Named tuples would be equal whatever
their names, and `Suspend(11)` the same to a test as `Resume(11)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .cost import Cost
from .errors import ExitStatus


class Process(NamedTuple):
    """One managed process."""

    pid: int
    name: str  # as users see it: web:1


class Plan(NamedTuple):
    """What is to be done, and within which times (seconds)."""

    program: str
    key: str  # of the asking command's making; asking again with it re-attaches
    old: tuple[Process, ...]  # in the order in which they are replaced
    size: int  # how many processes the program has outside a reload
    ready_timeout: float
    ready_hold: float
    quiesce: float
    stop_timeout: float  # after which the manager kills a process that it stops
    awaited: str  # what shows that a new process is ready, in words
    verify: str = ""  # what must answer from the new process, for the broker to understand; empty: nothing
    drain: str = ""  # why the old process is drained from outside; empty: it is left to its stop signal
    drain_timeout: float = 0.0
    stop_signal: int = 15  # by which the manager stops a process of the program
    by_signal: str = "it drains itself on its stop signal"  # why it is left to it
    cut: str = "it ended before it had answered them"  # why it may cut requests then, and what to do against it
    is_told_signal: bool = False  # the manager has to be told the stop signal: it has another of its own
    hand_over: bool = False  # it is drained by handing its connections to the new one
    expires: float | None = None  # monotonic seconds: nothing new is begun after it
    newcomer: Process | None = None  # what the manager has started by itself, for the one turn that there is then
    ready_key: str = "ready"  # what its section calls what shows that a process is ready
    alone: bool = False  # the one old process goes, and nothing comes in its place
    max_draining: int = 1  # how many old processes may drain at once
    surplus: tuple[int, ...] = ()  # the pids of those of *old* that the configuration has no place for any more
    added: int = 0  # how many processes it has a place for beyond those
    configuration: int | None = None  # which of the manager's readings is applied; None: the newest, at each start


# Events.
@dataclass(frozen=True, slots=True)
class Started:
    """The manager started *process* beside the old one."""

    process: Process
    turn: int = 0


@dataclass(frozen=True, slots=True)
class StartRefused:
    """The manager started nothing; or has not answered (*silent*), and may have."""

    reason: str
    silent: bool = False
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Registered:
    """*pid* was seen to wait for connections, by an event registration that was not seen before or otherwise."""

    pid: int


@dataclass(frozen=True, slots=True)
class Unready:
    """*pid* is not ready yet, or, in its hold, not any more; *reason* says what it lacks, and what to do."""

    pid: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """*pid* is ready; *how* says what showed it."""

    pid: int
    how: str


@dataclass(frozen=True, slots=True)
class Gone:
    """*pid* has died; *reason* says how, as far as is known."""

    pid: int
    reason: str = "it died"
    cost: Cost | None = None  # None: nobody was to look


@dataclass(frozen=True, slots=True)
class Stopped:
    """The manager was told by somebody else to stop *pid*; `Gone` may follow."""

    pid: int


@dataclass(frozen=True, slots=True)
class Switched:
    """The old one's registration is suspended, or cannot be; *how* says which."""

    how: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What had to answer from the new process has answered; *how* says what."""

    how: str


@dataclass(frozen=True, slots=True)
class VerifyFailed:
    """It answered, and not as it had to."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """The old process *pid* has no connection left, or none that can be ended from outside; *how* says which.

    0: that of any turn.
    """

    how: str
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """The manager has the processes that it was told to have, or is stopping the others; *stopped*: all of them."""

    stopped: bool = False
    turn: int = 0


@dataclass(frozen=True, slots=True)
class SettleRefused:
    """The manager did not do what `Settle` asks; or has not answered (*silent*), and may have."""

    reason: str
    silent: bool = False
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Swept:
    """Of what was left over, *ended* has been ended, and *left* serves still; in words, empty for nothing. *unseen* is
    why it can't be seen whether anything is left.

    *of* is the pid that `Sweep` named; *cost* is what the ends have cost (None: nothing was to be ended). *unserved*
    names the sockets that the old process, which stays, is not seen to serve.
    """

    ended: str = ""
    left: str = ""
    of: int | None = None
    cost: Cost | None = None
    unseen: str = ""
    unserved: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Whoever asked for the reload wants it undone."""

    reason: str


Event = (
    Started
    | StartRefused
    | Registered
    | Unready
    | Ready
    | Gone
    | Stopped
    | Switched
    | Verified
    | VerifyFailed
    | Drained
    | Settled
    | SettleRefused
    | Swept
    | Tick
    | Cancelled
)


# Effects.
@dataclass(frozen=True, slots=True)
class Start:
    """Have the manager start one more process; answer with `Started` or `StartRefused`, of the same *turn*.

    It is to be *beside* that pid; None: for a place that the configuration has and nobody yet.
    """

    turn: int = 0
    beside: int | None = None


@dataclass(frozen=True, slots=True)
class Find:
    """Find the process that the manager has started for one that died, none of *known*; answer as to `Start`."""

    known: tuple[int, ...]
    turn: int = 0


@dataclass(frozen=True, slots=True)
class HoldBack:
    """Suspend the registrations of *pid*'s process tree, which is not to serve yet; no answer is waited for."""

    pid: int


@dataclass(frozen=True, slots=True)
class Suspend:
    """Suspend the registrations of *pid*'s process tree; answer with `Switched`."""

    pid: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Resume the registrations of *pid*'s process tree."""

    pid: int


@dataclass(frozen=True, slots=True)
class Verify:
    """Find out whether *pid* answers as it has to; answer with `Verified` or `VerifyFailed`."""

    pid: int


@dataclass(frozen=True, slots=True)
class Drain:
    """End the connections of *pid*'s process tree as they become idle; answer with `Drained`."""

    pid: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """Have *pid* hand its connections to *successor* (None: to whom it likes); answer with `Drained`."""

    pid: int
    successor: Process | None


@dataclass(frozen=True, slots=True)
class TakePlace:
    """Have the manager count *newcomer* (None: nobody) in the place of *pid*, which is not stopped yet.

    Without *pid* in a place that nobody had. No answer is waited for: where both are, `Settle` does it too.
    """

    pid: int | None
    newcomer: int | None


@dataclass(frozen=True, slots=True)
class Settle:
    """Have the manager stop *retire* and run *size* processes; answer with `Settled` or `SettleRefused`.

    Any beyond *size* that are not *known* go too: a newcomer that crashed may have been respawned.

    With *kill* what goes is given up: it is killed, at the latest *patience* seconds after it was told to stop, and at
    once if it has nothing in hand. Otherwise it is stopped as the manager stops any process.
    """

    retire: tuple[int, ...]
    known: tuple[int, ...]
    size: int
    kill: bool
    patience: float = 0.0
    turn: int = 0  # of which the answer is


@dataclass(frozen=True, slots=True)
class Sweep:
    """End what is left of the program's processes that have ended, or of *pid* alone, and serves its sockets; answer
    with `Swept`."""

    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Tell whoever follows the reload."""

    step: str
    process: Process | None
    seconds: float  # since the reload began
    reason: str = ""
    cost: Cost | None = None  # of the old process that has ended, or of all; None: none has


@dataclass(frozen=True, slots=True)
class Finish:
    """Whoever asked for the reload is answered. It has ended, unless an old process drains, or a silent manager has yet
    to do its part."""

    result: str  # ok, rolled_back, failed
    exit: ExitStatus
    reason: str
    cost: Cost | None = None  # of all old processes that have ended


Effect = (
    Start
    | Find
    | HoldBack
    | Suspend
    | Resume
    | Verify
    | Drain
    | HandOver
    | TakePlace
    | Settle
    | Sweep
    | Report
    | Finish
)
