"""The vocabulary of who holds a socket's registration: policies and claims, what may happen (events), what is to be
done (effects).

Times are nanoseconds of CLOCK_BOOTTIME. An *epoch* numbers one hold of one claim: it is larger than any before it, also
across restarts of the broker, and 0 where nothing is held.

Events and effects are data classes: two are equal only if they are of one kind.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

Identity = tuple[int, int, int]  # pid, start time, pidfd inode: the kernel's word; only ever compared as a whole


class Means(Enum):
    """How a claim is kept waiting; the value is what users see."""

    GATE = "gate"  # the process watches a gate, which the broker opens and shuts
    SUSPEND = "suspend"  # the broker suspends and resumes the registration of an unmodified program
    COOPERATE = "cooperate"  # the process starts its program when it holds; it can be stopped, not disarmed


class Policy(NamedTuple):
    """The `registration` of one socket."""

    kind: str  # shared, exclusive, latest, rotate
    limit: int  # how many can hold it at once

    @classmethod
    def of(cls, registration: str | int) -> Policy:
        """The policy that a configuration's *registration* names; a number is *exclusive* with that many holders.

        Raises:
            ValueError: It names none.
        """
        word = str(registration)
        if word == "shared":
            return cls(word, sys.maxsize)
        if word in SUPPORTED:
            return cls(word, 1)
        if word.isascii() and word.isdigit() and int(word) > 0:
            return cls("exclusive", int(word))
        raise ValueError(f"can't use registration {word!r}: it must be {', '.join(SUPPORTED)} or a number of holders")


#: Which means go with which kind of policy; all other pairs are refused at start.
SUPPORTED: dict[str, frozenset[Means]] = {
    "shared": frozenset(Means),
    "exclusive": frozenset(Means),
    # One that does not run before it holds can't be told from one that has yet to register.
    "latest": frozenset({Means.GATE, Means.SUSPEND}),
    # What an unmodified program accepts is not seen.
    "rotate": frozenset({Means.GATE}),
}


def supports(policy: Policy, means: Means) -> bool:
    """Whether *policy* can be kept by *means*."""
    return means in SUPPORTED[policy.kind]


class Claim(NamedTuple):
    """One process's standing wish for one socket's registration."""

    key: str  # of the claim; never used again
    pid: int
    identity: Identity
    process: str  # as users see it: web:1
    program: str
    means: Means
    managed: int = 0  # the pid of the managed process that it is or descends from


class Standing(Enum):
    """Where a claim is; the value is what the journal holds."""

    WAITING = "waiting"
    HELD = "held"
    REVOKING = "revoking"  # told to let go, and not known to have: as good as held


class Entry(NamedTuple):
    """A claim as it stands."""

    claim: Claim
    standing: Standing
    epoch: int  # of this hold; 0 when waiting, and for one that was never granted it and can't be kept from it
    since: int  # when it came to this standing
    paused: bool  # may not be granted
    stalled: bool  # held it and did not take what was there: granted only if nobody else can have it


# Events. One whose epoch is not the claim's present one is stale, and changes nothing.
@dataclass(frozen=True, slots=True)
class Claimed:
    """*claim* joins the line. Known already: no change. *paused*: as if `Paused` came at once, before any grant."""

    claim: Claim
    paused: bool = False

    @property
    def key(self) -> str:
        return self.claim.key


@dataclass(frozen=True, slots=True)
class Released:
    """The process gives its claim up: of its own hold, or, with epoch 0, while it waits."""

    key: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Disarmed:
    """What `Disarm` asked has been done."""

    key: str
    epoch: int


@dataclass(frozen=True, slots=True)
class NotDisarmed:
    """What `Disarm` asked can't be done, or not now; `Disarmed` may follow."""

    key: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """The process that is *identity* has died."""

    identity: Identity


@dataclass(frozen=True, slots=True)
class Registered:
    """*key* was seen armed by itself: under *latest* a new registration; otherwise, or if it is paused, a violation."""

    key: str


@dataclass(frozen=True, slots=True)
class Stalled:
    """The holder does not take what waits on the socket; *reason* says how it is, as far as is known."""

    key: str
    epoch: int
    reason: str = "it did not take what waited"


@dataclass(frozen=True, slots=True)
class MoveTo:
    """*key* is to have it; the longest holder makes room, and keeps its place in the line."""

    key: str


@dataclass(frozen=True, slots=True)
class Paused:
    """*key* may not hold it until `Resumed`; if it does, *successor* comes next, if that one can have it."""

    key: str
    successor: str | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """*key* may hold it again, and does not count as stalled. *first*: at once, in place of the youngest holder."""

    key: str
    first: bool = False


@dataclass(frozen=True, slots=True)
class Advance:
    """Under *rotate*: the next in turn is to have it, or the one whose key is *to*, if it can."""

    to: str | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Claimed
    | Released
    | Disarmed
    | NotDisarmed
    | Gone
    | Registered
    | Stalled
    | MoveTo
    | Paused
    | Resumed
    | Advance
    | Tick
)


# Effects.
@dataclass(frozen=True, slots=True)
class Record:
    """Write `Registration.record()` where the next broker finds it, before anything that follows is done."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Open the gate, resume the registration, or let the process start its program. Done twice, it is done."""

    key: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Disarm:
    """Shut the gate, or suspend the registration. Done twice, it is done.

    Once all effects of the list are performed, answer with `Disarmed` or `NotDisarmed`; it means nothing if the claim
    has left since.
    """

    key: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the process: held, revoked (it stays in line), or cancelled (its claim is over)."""

    key: str
    what: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Have the manager stop the process that is *identity*, and no other that may have its pid by now."""

    key: str
    reason: str
    identity: Identity


@dataclass(frozen=True, slots=True)
class Note:
    """For the log and the counters; *what* is one of `NOTES`."""

    what: str
    key: str
    reason: str


#: What is noted, and counted.
NOTES = (
    "claimed",
    "granted",
    "revoked",
    "moved",
    "cancelled",
    "released",
    "gone",
    "paused",
    "resumed",
    "stalled",
    "violation",
    "stopped",
)

Effect = Record | Arm | Disarm | Tell | Stop | Note
