"""Handing over connections: the rules of both ends of a lane, and who gets which connection. No I/O, no clock.

Theory of operation. A *lane* is a private, ordered, reliable packet channel from one giver to one receiver, which dies
with either. The giver alone decides; each connection goes

    giver      OFFERED -> TAKEN -> COMMITTING -> (the receiver's)    or  -> WITHDRAWING -> (kept: the giver's)
    receiver   TAKEN -> (committed: owned)                           or  -> (withdrawn, declined: dropped)

and nobody uses it in between. A giver that lives says one of COMMIT and WITHDRAW, and uses the connection again only
once WITHDRAW is in the lane. So a lane that *ends* without either tells the receiver that the giver is dead, and the
connection the receiver's: it adopts it. A lane that ends before COMMIT was sent leaves it with the giver; after that
the receiver's death closes it. Whoever dies when: exactly one owner, or one clean close.

A word may fail to get into the lane although the lane lives: no room, no memory (`Unsent`). It is said again after
`RETRY`. Whoever says it may also be interrupted, so that nobody knows: then it is said again too, as both words mean
nothing the second time, and what may be committed (UNKNOWN) is never withdrawn. A giver that can say neither for
`PATIENCE` acts as the dead do: it closes its copies and ends the lane, and the receiver adopts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import Any, NamedTuple

#: Connections that may wait in a receiver until its program receives them.
WINDOW = 64
#: Seconds until a word that did not get into the lane is said again, and until the giver gives the lane up for it.
RETRY = 0.005
PATIENCE = 0.5


class Decline(Enum):
    """Why a receiver does not take a connection; the value is what travels."""

    FULL = 1  # as many as it wants wait already
    CLOSED = 2  # it takes none any more
    UNREADABLE = 3  # it could not open its descriptor, or its state


class Kept(Enum):
    """Why a connection stays the giver's; the value is for people."""

    FULL = "as many connections as it takes wait there already"
    CLOSED = "it takes no connections any more"
    UNREADABLE = "it could not open the descriptor (RLIMIT_NOFILE)"
    LATE = "it did not answer in time"
    LOST = "it has ended"
    GARBLED = "it said what nobody can understand"
    SHUT = "this share was closed meanwhile"
    UNHEARD = "the broker did not say in time who is there"
    NOBODY = "no process there takes connections; does it call receive()?"


_KEPT = {Decline.FULL: Kept.FULL, Decline.CLOSED: Kept.CLOSED, Decline.UNREADABLE: Kept.UNREADABLE}


# What may happen at the giver's end.
@dataclass(frozen=True, slots=True)
class Took:
    """The receiver has the descriptors of *ids*."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Declined:
    """The receiver does not take *ids*, and has closed what it had of them."""

    ids: Sequence[int]
    reason: Decline


@dataclass(frozen=True, slots=True)
class Sent:
    """What was to be sent about *ids* is in the lane."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Unsent:
    """What was to be sent about *ids* is not in the lane, which lives: for want of room, or of memory."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Reported:
    """*received* more connections were received by the program, which has *load* now, and lets *window* wait unreceived
    (0: it takes none any more)."""

    received: int
    load: int
    window: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The other end of the lane is gone, and so what was to be sent about *unsent* is not in it; everything that the
    other end had said was read before."""

    unsent: Sequence[int] = ()


# What the giver is to do.
@dataclass(frozen=True, slots=True)
class SendCommit:
    """Say COMMIT of *ids*; then feed `Sent` or `Unsent`, or `Ended` if the lane has."""

    ids: list[int]


@dataclass(frozen=True, slots=True)
class SendWithdraw:
    """Say WITHDRAW of *ids*; then feed `Sent` or `Unsent`, or `Ended` if the lane has."""

    ids: list[int]


@dataclass(frozen=True, slots=True)
class Release:
    """*ids* are the receiver's: close the copies."""

    ids: list[int]


@dataclass(frozen=True, slots=True)
class Keep:
    """*ids* are the giver's again, for the reason given."""

    ids: list[int]
    reason: Kept


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the lane, without a word; everything in it was released before."""


GiverEvent = Took | Declined | Sent | Unsent | Reported | Tick | Ended
GiverEffect = SendCommit | SendWithdraw | Release | Keep | GiveUp


class Stage(Enum):
    """Where a connection is, at the giver's end."""

    OFFERED = "offered"
    TAKEN = "taken"  # and COMMIT is not in the lane
    COMMITTING = "committing"  # COMMIT is being said
    UNKNOWN = "unknown"  # whoever said COMMIT was interrupted: it may be in the lane
    WITHDRAWING = "withdrawing"  # WITHDRAW is being said, as often as it takes


class _Offer:
    __slots__ = ("deadline", "reason", "stage")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.stage = Stage.OFFERED
        self.reason = Kept.LATE  # if it is withdrawn


class Giving:
    """The giver's end of one lane. `offer` connections, then `feed` it what happens, and perform the effects in order.

    Attributes:
        load: Connections that the receiver had, when it last said so, and those that it has not answered for.
        deadline: When `Tick` is due (in the clock of *now*); None: never.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.deadline: float | None = None
        self._window = window
        self._unreceived = 0  # offered, and neither kept nor received by the program
        self._load = 0
        self._next = 1
        self._offers: dict[int, _Offer] = {}
        self._full = False
        self.ended = False

    @property
    def room(self) -> int:
        """How many connections may be offered now."""
        return 0 if self.ended or self._full else max(0, self._window - self._unreceived)

    @property
    def load(self) -> int:
        """See the class. What was taken is in the report that came with TAKE."""
        return self._load + len(self._offers)

    @property
    def undecided(self) -> int:
        """How many are offered, and neither kept nor the receiver's."""
        return len(self._offers)

    def offer(self, count: int, deadline: float) -> range:
        """The ids of *count* connections that are offered from now on, until *deadline*.

        Raises:
            ValueError: There is no room for so many; nothing has changed.
        """
        if count > self.room:
            raise ValueError(f"can't offer {count} connections: there is room for {self.room}")
        ids = range(self._next, self._next + count)
        self._next += count
        for id in ids:
            self._offers[id] = _Offer(deadline)
        self._unreceived += count
        self._due(deadline)
        return ids

    def feed(self, event: GiverEvent, now: float = 0.0) -> list[GiverEffect]:
        """Take *event* at *now*; what it says of a connection for which it means nothing changes nothing."""
        return _GIVER[type(event)](self, event, now)

    def withdraw(self, ids: Iterable[int], now: float, reason: Kept = Kept.LATE) -> list[GiverEffect]:
        """Have *ids* back, for *reason*, as far as COMMIT of them was not said; the others are the receiver's.

        All of them are decided once the effects are performed, or by `Tick` within `PATIENCE`.
        """
        mine = [id for id in ids if id in self._offers]
        for id in mine:
            offer = self._offers[id]
            if offer.stage in (Stage.OFFERED, Stage.TAKEN):
                offer.stage, offer.reason, offer.deadline = Stage.WITHDRAWING, reason, now
            offer.deadline = min(offer.deadline, now)
        return self._say(mine)

    def has(self, id: int) -> bool:
        """Whether *id* is undecided."""
        return id in self._offers

    def _say(self, ids: Sequence[int]) -> list[GiverEffect]:
        """What has to be said of *ids*, for the first time or again."""
        new, again, withdraw = (self._in(ids, stage) for stage in (Stage.TAKEN, Stage.COMMITTING, Stage.WITHDRAWING))
        commit = [*new, *again, *self._in(ids, Stage.UNKNOWN)]
        for id in new:
            self._offers[id].stage = Stage.COMMITTING
        for id in again:  # there was no answer to the first time
            self._offers[id].stage = Stage.UNKNOWN
        return [*([SendCommit(commit)] if commit else []), *([SendWithdraw(withdraw)] if withdraw else [])]

    def _took(self, event: Took, now: float) -> list[GiverEffect]:
        mine = self._in(event.ids, Stage.OFFERED)
        for id in mine:
            self._offers[id].stage = Stage.TAKEN
        return self._say(mine)

    def _declined(self, event: Declined, now: float) -> list[GiverEffect]:
        # One that is being withdrawn stays so: it is kept when that was said, for the reason that its owner knows.
        mine = self._in(event.ids, Stage.OFFERED)
        if event.reason is Decline.FULL:
            self._full = True
        elif event.reason is Decline.CLOSED:
            self._window = 0  # until it says otherwise
        return self._keep(mine, _KEPT[event.reason])

    def _sent(self, event: Sent, now: float) -> list[GiverEffect]:
        committed = self._in(event.ids, Stage.COMMITTING, Stage.UNKNOWN)
        withdrawn = self._in(event.ids, Stage.WITHDRAWING)
        return [*self._release(committed), *self._keep_withdrawn(withdrawn)]

    def _unsent(self, event: Unsent, now: float) -> list[GiverEffect]:
        self._not_said(event.ids)
        if any(self._offers[id].deadline + PATIENCE <= now for id in event.ids if id in self._offers):
            self.ended, self.deadline = True, None
            return [*self._release(list(self._offers)), GiveUp()]
        self._due(now + RETRY)
        return []

    def _reported(self, event: Reported, now: float) -> list[GiverEffect]:
        self._unreceived = max(0, self._unreceived - event.received)
        self._load, self._window, self._full = event.load, event.window, False
        return []

    def _tick(self, event: Tick, now: float) -> list[GiverEffect]:
        said = [id for id, offer in self._offers.items() if offer.stage is not Stage.OFFERED]
        late = [id for id, offer in self._offers.items() if offer.deadline <= now]
        self.deadline = None
        for offer in self._offers.values():
            self._due(offer.deadline if offer.deadline > now else now + RETRY)
        # What is neither late nor said yet is said again.
        return [*self._say([id for id in said if id not in late]), *self.withdraw(late, now)]

    def _end(self, event: Ended, now: float) -> list[GiverEffect]:
        self.ended = True
        self._not_said(event.unsent)
        # Nobody knows whether COMMIT was read.
        released = self._release(self._in(list(self._offers), Stage.COMMITTING, Stage.UNKNOWN))
        withdrawn = self._in(list(self._offers), Stage.WITHDRAWING)
        return [*released, *self._keep_withdrawn(withdrawn), *self._keep(list(self._offers), Kept.LOST)]

    def _not_said(self, ids: Iterable[int]) -> None:
        for id in self._in(ids, Stage.COMMITTING):
            self._offers[id].stage = Stage.TAKEN

    def _due(self, at: float) -> None:
        if self.deadline is None or at < self.deadline:
            self.deadline = at

    def _in(self, ids: Iterable[int], *stages: Stage) -> list[int]:
        offers = self._offers
        return [id for id in ids if id in offers and offers[id].stage in stages]

    def _release(self, ids: list[int]) -> list[GiverEffect]:
        for id in ids:
            del self._offers[id]
        return [Release(ids)] if ids else []

    def _keep_withdrawn(self, ids: list[int]) -> list[GiverEffect]:
        effects: list[GiverEffect] = []
        for reason in Kept:
            effects += self._keep(
                [id for id in ids if id in self._offers and self._offers[id].reason is reason], reason
            )
        return effects

    def _keep(self, ids: list[int], reason: Kept) -> list[GiverEffect]:
        for id in ids:
            del self._offers[id]
        self._unreceived = max(0, self._unreceived - len(ids))
        return [Keep(ids, reason)] if ids else []


_GIVER: dict[type, Callable[[Giving, Any, float], list[GiverEffect]]] = {
    Took: Giving._took,
    Declined: Giving._declined,
    Sent: Giving._sent,
    Unsent: Giving._unsent,
    Reported: Giving._reported,
    Tick: Giving._tick,
    Ended: Giving._end,
}


# What may happen at the receiver's end, beside `Ended`.
@dataclass(frozen=True, slots=True)
class Offered:
    """*ids* are offered, and their descriptors are here."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """*ids* were offered, and their descriptors or states could not be had."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Committed:
    """The giver has given *ids* up."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The giver has *ids* back."""

    ids: Sequence[int]


# What the receiver is to do.
@dataclass(frozen=True, slots=True)
class SendTake:
    """Say TAKE of *ids*."""

    ids: list[int]


@dataclass(frozen=True, slots=True)
class SendDecline:
    """Close what there is of *ids*, then say DECLINE."""

    ids: list[int]
    reason: Decline


@dataclass(frozen=True, slots=True)
class Own:
    """*ids* are the receiver's: the program may have them."""

    ids: list[int]
    adopted: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """Close what there is of *ids*: they are the giver's."""

    ids: list[int]


ReceiverEvent = Offered | Unreadable | Committed | Withdrawn | Ended
ReceiverEffect = SendTake | SendDecline | Own | Drop


class Intake:
    """How many connections wait in a receiver, whichever lane they came by: undecided ones, and owned ones that the
    program has not received yet. They are at most *limit*.

    Attributes:
        closed: Nothing is taken any more.
    """

    def __init__(self, limit: int = WINDOW) -> None:
        self.limit = limit
        self.waiting = 0
        self.closed = False

    @property
    def room(self) -> int:
        """How many more may be taken."""
        return 0 if self.closed else max(0, self.limit - self.waiting)


class Taking:
    """The receiver's end of one lane, whose connections count in *intake*."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._taken: dict[int, None] = {}  # undecided, in the order in which they came
        self._received = 0  # and not reported yet
        self.declined = False  # for want of room; the giver waits to hear of some

    def feed(self, event: ReceiverEvent) -> list[ReceiverEffect]:
        """Take *event*; what it says of a connection for which it means nothing changes nothing."""
        return _RECEIVER[type(event)](self, event)

    def received(self) -> None:
        """The program has received one of this lane's."""
        self._intake.waiting -= 1
        self._received += 1

    @property
    def unreported(self) -> int:
        """How many were received since the last `report`."""
        return self._received

    def report(self, load: int) -> Reported:
        """What the giver is to be told, now."""
        received, self._received = self._received, 0
        self.declined = self.declined and not self._intake.room
        return Reported(received, load, 0 if self._intake.closed else self._intake.limit)

    def unreport(self, said: Reported) -> None:
        """The giver could not be told *said*: it still waits to hear."""
        self._received += said.received
        self.declined = not self._intake.closed

    @property
    def undecided(self) -> list[int]:
        """What was taken, and neither committed nor withdrawn."""
        return list(self._taken)

    def _offered(self, event: Offered) -> list[ReceiverEffect]:
        new = [id for id in event.ids if id not in self._taken]
        taken = new[: self._intake.room]
        for id in taken:
            self._taken[id] = None
        self._intake.waiting += len(taken)
        effects: list[ReceiverEffect] = [SendTake(taken)] if taken else []
        if len(taken) < len(new):
            closed = self._intake.closed
            self.declined = not closed
            effects.append(SendDecline(new[len(taken) :], Decline.CLOSED if closed else Decline.FULL))
        return effects

    def _unreadable(self, event: Unreadable) -> list[ReceiverEffect]:
        return [SendDecline(list(event.ids), Decline.UNREADABLE)]

    def _committed(self, event: Committed) -> list[ReceiverEffect]:
        return self._own(event.ids, adopted=False)

    def _withdrawn(self, event: Withdrawn) -> list[ReceiverEffect]:
        dropped = [id for id in event.ids if id in self._taken]
        for id in dropped:
            del self._taken[id]
        self._intake.waiting -= len(dropped)
        return [Drop(dropped)] if dropped else []

    def _ended(self, event: Ended) -> list[ReceiverEffect]:
        # Neither COMMIT nor WITHDRAW came, and a giver that lives says one of them: it is dead.
        return self._own(list(self._taken), adopted=True)

    def _own(self, ids: Iterable[int], *, adopted: bool) -> list[ReceiverEffect]:
        owned = [id for id in ids if id in self._taken]
        for id in owned:
            del self._taken[id]
        return [Own(owned, adopted)] if owned else []


_RECEIVER: dict[type, Callable[[Taking, Any], list[ReceiverEffect]]] = {
    Offered: Taking._offered,
    Unreadable: Taking._unreadable,
    Committed: Taking._committed,
    Withdrawn: Taking._withdrawn,
    Ended: Taking._ended,
}


# Who gets which connection.
class Candidate(NamedTuple):
    """One receiver that may get a connection."""

    process: str
    pid: int
    load: int
    room: int


#: How a receiver of a program is chosen.
ROUTES = ("least_loaded", "round_robin")


def choose(candidates: Sequence[Candidate], route: str, turn: int, key: bytes | None = None) -> int | None:
    """The index of the candidate that gets the next connection; None when all are full.

    Args:
        route: One of `ROUTES`.
        turn: How many were chosen before, for ``round_robin``, and between equals.
        key: Connections of one key go to one receiver for as long as it is there, whatever *route* says; when that one
            is full there is no other. When receivers come or go, only their own keys change places.
    """
    if key is not None:
        wanted = max(range(len(candidates)), key=lambda index: _weight(key, candidates[index]), default=None)
        return wanted if wanted is not None and candidates[wanted].room > 0 else None
    count = len(candidates)
    in_turn = [index for step in range(count) if candidates[index := (turn + step) % count].room > 0]
    if route == "least_loaded":
        return min(in_turn, key=lambda index: candidates[index].load, default=None)
    return in_turn[0] if in_turn else None


def _weight(key: bytes, candidate: Candidate) -> tuple[bytes, bytes]:
    # Rendezvous hashing (Thaler and Ravishankar, 1998), by the name, which outlives a reload; the pid decides among
    # workers that one managed process has forked.
    return _digest(key, candidate.process), _digest(key, str(candidate.pid))


def _digest(key: bytes, name: str) -> bytes:
    return blake2b(name.encode(), key=blake2b(key, digest_size=32).digest(), digest_size=8).digest()
