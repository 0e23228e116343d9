"""The vocabulary of a reload: what is planned, what may happen (events), what is to be done (effects)."""

from __future__ import annotations

from typing import NamedTuple

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
    drain: str = ""  # why the old process is drained from outside; empty: it drains itself on its stop signal
    drain_timeout: float = 0.0
    hand_over: bool = False  # it is drained by handing its connections to the new one
    expires: float | None = None  # monotonic seconds: nothing new is begun after it
    newcomer: Process | None = None  # what the manager has started by itself, for the one turn that there is then
    alone: bool = False  # the one old process goes, and nothing comes in its place


# Events.
class Started(NamedTuple):
    """The manager started *process* beside the old one."""

    process: Process


class StartRefused(NamedTuple):
    """The manager started nothing; or has not answered (*silent*), and may have."""

    reason: str
    silent: bool = False


class Ready(NamedTuple):
    """*pid* is ready; *how* says what showed it."""

    pid: int
    how: str


class Gone(NamedTuple):
    """*pid* has died; *reason* says how, as far as is known."""

    pid: int
    reason: str = "it died"


class Switched(NamedTuple):
    """The old one's registration is suspended, or cannot be; *how* says which."""

    how: str


class Verified(NamedTuple):
    """What had to answer from the new process has answered; *how* says what."""

    how: str


class VerifyFailed(NamedTuple):
    """It answered, and not as it had to."""

    reason: str


class Drained(NamedTuple):
    """The old process has no connection left, or none that can be ended from outside; *how* says which."""

    how: str


class Settled(NamedTuple):
    """The manager has the processes that it was told to have, or is stopping the others; *stopped*: all of them."""

    stopped: bool = False


class SettleRefused(NamedTuple):
    """The manager did not do what `Settle` asks; or has not answered (*silent*), and may have."""

    reason: str
    silent: bool = False


class Tick(NamedTuple):
    """Time has passed."""


class Cancelled(NamedTuple):
    """Whoever asked for the reload wants it undone."""

    reason: str


Event = (
    Started
    | StartRefused
    | Ready
    | Gone
    | Switched
    | Verified
    | VerifyFailed
    | Drained
    | Settled
    | SettleRefused
    | Tick
    | Cancelled
)


# Effects.
class Start(NamedTuple):
    """Have the manager start one more process; answer with `Started` or `StartRefused`."""


class Find(NamedTuple):
    """Find the process that the manager has started for one that died, none of *known*; answer as to `Start`."""

    known: tuple[int, ...]


class HoldBack(NamedTuple):
    """Suspend the registrations of *pid*'s process tree, which is not to serve yet; no answer is waited for."""

    pid: int


class Suspend(NamedTuple):
    """Suspend the registrations of *pid*'s process tree; answer with `Switched`."""

    pid: int


class Resume(NamedTuple):
    """Resume the registrations of *pid*'s process tree."""

    pid: int


class Verify(NamedTuple):
    """Find out whether *pid* answers as it has to; answer with `Verified` or `VerifyFailed`."""

    pid: int


class Drain(NamedTuple):
    """End the connections of *pid*'s process tree as they become idle; answer with `Drained`."""

    pid: int


class HandOver(NamedTuple):
    """Have *pid* hand its connections to *successor* (None: to whom it likes); answer with `Drained`."""

    pid: int
    successor: Process | None


class Settle(NamedTuple):
    """Have the manager stop *retire* and run *size* processes; answer with `Settled` or `SettleRefused`.

    Any beyond *size* that are not *known* go too: a newcomer that crashed may have been respawned.
    """

    retire: tuple[int, ...]
    known: tuple[int, ...]
    size: int
    kill: bool


class Report(NamedTuple):
    """Tell whoever follows the reload."""

    step: str
    process: Process | None
    seconds: float  # since the reload began
    reason: str = ""


class Finish(NamedTuple):
    """Whoever asked for the reload is answered. It has ended, unless a silent manager has yet to do its part."""

    result: str  # ok, rolled_back, failed
    exit: ExitStatus
    reason: str


Effect = Start | Find | HoldBack | Suspend | Resume | Verify | Drain | HandOver | Settle | Report | Finish
