"""Who holds the event registration of one socket, as a pure state machine.

Theory of operation. Claims stand in a line; each is WAITING, HELD, or REVOKING: told to let go, and not known to have,
which counts as holding. A grant needs one of `limit` places, and a place becomes free only by a holder's death, its
release, or the word that it is disarmed: time may revoke, never grant. A hold has an epoch, and whoever speaks of
another epoch than the present one is not heard.

The broker can be killed between any two effects, and the next one has only the last `record`. So the order is always:
disarm, record, then arm and tell. What was recorded as held is armed again; whatever waited is disarmed first of all
(the *sweep*: it can have been armed by itself, or by somebody who left no record), and only then are places filled. Who
is told to let go was recorded as REVOKING before, so that the answer finds it so.

Next is who was chosen (by a move, a pause or a turn), then who has not stalled, then who is first in the line. Under
*latest* the line begins with the newest registration; under *rotate* it is a ring, turned until the holder is in front.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from .registration_steps import (
    Advance,
    Arm,
    Claim,
    Claimed,
    Disarm,
    Disarmed,
    Effect,
    Entry,
    Event,
    Gone,
    Means,
    MoveTo,
    NotDisarmed,
    Note,
    Paused,
    Policy,
    Record,
    Registered,
    Released,
    Resumed,
    Stalled,
    Standing,
    Stop,
    Tell,
    Tick,
    words,
)

#: Nanoseconds from asking a holder to let go to having it stopped.
ACK_TIMEOUT = 2_000_000_000

_WAITING, _HELD, _REVOKING = Standing


class _Seat:
    """A claim in the line."""

    __slots__ = ("cancelled", "claim", "deadline", "epoch", "paused", "reason", "since", "stalled", "standing", "told")

    def __init__(self, claim: Claim, since: int, *, paused: bool = False) -> None:
        self.claim = claim
        self.standing = _WAITING
        self.epoch = 0
        self.since = since
        self.paused = paused
        self.stalled = False
        self.cancelled = False  # it leaves as soon as it has let go
        self.reason = ""  # why it is to let go
        self.told = ""  # whether it knows
        self.deadline: int | None = None  # when it is to be stopped

    def may(self) -> bool:
        """Whether it can be granted, once it waits."""
        return self.standing is not _HELD and not self.paused and not self.cancelled


class Registration:
    """The registration of one socket. `feed` it events, or `recover` it, and perform the effects in order.

    Args:
        ack_timeout: Nanoseconds after which a holder that was told to let go, and has not, is stopped.
    """

    def __init__(self, policy: Policy, *, ack_timeout: int = ACK_TIMEOUT) -> None:
        self.policy = policy
        self.last_epoch = 0
        self.counters: Counter[str] = Counter()  # of `NOTES`, since this broker began
        self._ack_timeout = ack_timeout
        self._line: dict[str, _Seat] = {}
        self._chosen: list[str] = []  # who comes next, before anybody else; the latest choice first
        self._unswept: set[str] = set()  # whose sweep is not answered yet

    # What the broker asks of it.

    @property
    def claims(self) -> list[Entry]:
        """All claims, in line order."""
        return [_entry(seat) for seat in self._line.values()]

    @property
    def holders(self) -> list[Entry]:
        """Those that are HELD or REVOKING, in line order."""
        return [_entry(seat) for seat in self._line.values() if seat.standing is not _WAITING]

    @property
    def deadline(self) -> int | None:
        """When `Tick` is next due, or None."""
        return min((seat.deadline for seat in self._line.values() if seat.deadline is not None), default=None)

    def find(self, key: str) -> Entry | None:
        """The claim *key*, or None if there is none (any more)."""
        seat = self._line.get(key)
        return None if seat is None else _entry(seat)

    def feed(self, event: Event, now: int) -> list[Effect]:
        """Take *event* at *now*; one that means nothing changes nothing."""
        seat = self._line.get(getattr(event, "key", ""))
        if seat is not None and self._stale(seat, event):
            return []
        transition = _TRANSITIONS.get((None if seat is None else seat.standing, type(event)))
        return self._in_order(transition(self, seat, event, now)) if transition else []

    def record(self) -> dict[str, Any]:
        """What a later broker needs to `recover` this: JSON values only."""
        return {
            "last_epoch": self.last_epoch,
            "chosen": list(self._chosen),
            "claims": [
                {
                    "claim": [
                        *seat.claim[:2],
                        list(seat.claim.identity),
                        *seat.claim[3:5],
                        seat.claim.means.value,
                        seat.claim.managed,
                    ],
                    "standing": seat.standing.value,
                    "epoch": seat.epoch,
                    "since": seat.since,
                    "paused": seat.paused,
                    "stalled": seat.stalled,
                    "cancelled": seat.cancelled,
                    "reason": seat.reason,
                }
                for seat in self._line.values()
            ],
        }

    @classmethod
    def recover(
        cls, policy: Policy, record: dict[str, Any], now: int, *, ack_timeout: int = ACK_TIMEOUT
    ) -> tuple[Registration, list[Effect]]:
        """The registration of *record*, and the effects that make the kernel agree with it.

        Feed `Gone` for the claims whose processes are dead before anything else. Holders beyond a *policy* that allows
        fewer than it did are revoked, the youngest first.

        Raises:
            KeyError, TypeError, ValueError: The record is not one of `record`'s.
        """
        registration = cls(policy, ack_timeout=ack_timeout)
        registration.last_epoch = int(record["last_epoch"])
        for entry in record["claims"]:
            seat = _Seat(words(entry["claim"]), int(entry["since"]), paused=bool(entry["paused"]))
            seat.standing = Standing(entry["standing"])
            seat.epoch = int(entry["epoch"])
            seat.stalled, seat.cancelled = bool(entry["stalled"]), bool(entry["cancelled"])
            seat.reason = str(entry["reason"])
            registration._line[seat.claim.key] = seat
        registration._chosen = [key for key in record["chosen"] if key in registration._line]
        return registration, registration._in_order(registration._enter_again(now))

    # Transitions.

    def _enter_again(self, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for seat in sorted(self._held(), key=_by_epoch)[self.policy.limit :]:
            effects += self._revoke(seat, "fewer may hold it now", now)
        for key, seat in self._line.items():
            if seat.standing is _HELD:
                effects.append(Arm(key, seat.epoch))
            elif seat.standing is _REVOKING:
                seat.deadline = now + self._ack_timeout
                effects.append(Disarm(key, seat.epoch))
            elif seat.claim.means is not Means.COOPERATE:  # that one starts its program when it is told, and was not
                self._unswept.add(key)
                effects.append(Disarm(key, 0))
        return effects + self._fill(now)

    def _claimed(self, _: None, event: Claimed, now: int) -> list[Effect]:
        seat = _Seat(event.claim, now, paused=event.paused)
        self._line[event.key] = seat
        effects: list[Effect] = [Record(), self._note("claimed", seat, event.claim.means.value)]
        if self.policy.kind == "latest":
            effects += self._registered_latest(seat, now)
        else:
            effects += self._fill(now)
        # An unmodified program claims by registering.
        return effects + ([Disarm(event.key, 0)] if seat.claim.means is Means.SUSPEND and not seat.epoch else [])

    def _registered_itself(self, seat: _Seat, event: Registered, now: int) -> list[Effect]:
        if self.policy.kind == "latest" and not seat.paused:
            seat.stalled = False
            effects: list[Effect] = [Record(), *self._registered_latest(seat, now)]
        else:
            effects = [self._note("violation", seat, "it registered, and does not hold it")]
        return effects if seat.epoch else [*effects, Disarm(event.key, 0)]

    def _registered_latest(self, newest: _Seat, now: int) -> list[Effect]:
        self._to_front(newest)
        if newest.paused:
            return []
        effects: list[Effect] = []
        self._chosen.clear()
        for seat in [seat for seat in self._line.values() if seat is not newest and not seat.paused]:
            reason = f"cancelled by the registration of {newest.claim.process}"
            # A claim of the library is told, and is over. Other programs can't be told: they wait, suspended.
            seat.cancelled |= seat.claim.means is Means.GATE
            if seat.standing is _HELD:
                effects += self._revoke(seat, reason, now)
            elif seat.cancelled and seat.standing is _WAITING:
                seat.reason = reason
                effects += [*self._leave(seat), *self._tell(seat)]
        return effects + self._fill(now)

    def _released(self, seat: _Seat, event: Released, now: int) -> list[Effect]:
        return [*self._leave(seat), self._note("released", seat, f"it was {seat.standing.value}"), *self._fill(now)]

    def _gone(self, _: None, event: Gone, now: int) -> list[Effect]:
        dead = [seat for seat in self._line.values() if self._same(seat.claim.identity, event.identity)]
        effects: list[Effect] = []
        for seat in dead:
            self._drop(seat)
            effects += [Record(), self._note("gone", seat, f"it was {seat.standing.value}")]
        return effects + self._fill(now)

    def _swept(self, seat: _Seat, event: Disarmed, now: int) -> list[Effect]:
        self._unswept.discard(event.key)
        return self._fill(now)

    def _not_swept(self, seat: _Seat, event: NotDisarmed, now: int) -> list[Effect]:
        self._unswept.discard(event.key)
        seat.standing, seat.since, seat.deadline = _REVOKING, now, now + self._ack_timeout
        seat.reason, seat.told = f"it can't be kept from it: {event.reason}", ""
        return [Record(), self._note("violation", seat, seat.reason), *self._fill(now)]

    def _disarmed(self, seat: _Seat, event: Disarmed, now: int) -> list[Effect]:
        effects: list[Effect] = [Record(), *self._tell(seat)]
        seat.standing, seat.epoch, seat.since, seat.deadline = _WAITING, 0, now, None
        if seat.cancelled:
            self._drop(seat)
        return effects + self._fill(now)

    def _not_disarmed(self, seat: _Seat, event: NotDisarmed, now: int) -> list[Effect]:
        told = self._tell(seat)
        return [Record(), *told] if told else []

    def _disarm_again(self, seat: _Seat, event: Registered, now: int) -> list[Effect]:
        return [Disarm(event.key, seat.epoch)]

    def _stalled(self, seat: _Seat, event: Stalled, now: int) -> list[Effect]:
        if not any(other.may() and not other.stalled for other in self._waiting()):
            return []
        seat.stalled = True
        return [self._note("stalled", seat, event.reason), *self._revoke(seat, event.reason, now)]

    def _move_to(self, seat: _Seat, event: MoveTo, now: int) -> list[Effect]:
        if not seat.may():
            return []
        seat.stalled = False
        self._choose(event.key)
        room = self._make_room(f"moved to {seat.claim.process}", now, youngest=False)
        return [self._note("moved", seat, "it was asked for"), *room, *self._fill(now)]

    def _paused(self, seat: _Seat, event: Paused, now: int) -> list[Effect]:
        if seat.paused:
            return []
        seat.paused = True
        self._unchoose(event.key)
        effects: list[Effect] = [Record(), self._note("paused", seat, f"it was {seat.standing.value}")]
        if seat.standing is _HELD:
            successor = self._line.get(event.successor or "")
            if successor is not None and successor.may():
                self._choose(successor.claim.key)
            effects += self._revoke(seat, "paused", now)
        return effects

    def _resumed(self, seat: _Seat, event: Resumed, now: int) -> list[Effect]:
        if seat.cancelled or not (seat.paused or seat.stalled or event.first):
            return []
        seat.paused = seat.stalled = False
        effects: list[Effect] = [Record(), self._note("resumed", seat, "to be the next" if event.first else "")]
        if event.first:
            self._to_front(seat)
            self._choose(event.key)
            effects += self._make_room(f"{seat.claim.process} takes over again", now, youngest=True)
        return effects + self._fill(now)

    def _advance(self, _: None, event: Advance, now: int) -> list[Effect]:
        holder = next(self._held(), None)
        following = next((seat for seat in self._waiting() if seat.may() and not seat.stalled), None)
        if self.policy.kind != "rotate" or holder is None or following is None:
            return []
        self._choose(following.claim.key)
        return self._revoke(holder, "its turn is over", now)

    def _tick(self, _: None, event: Tick, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for key, seat in self._line.items():
            if seat.deadline is not None and now >= seat.deadline:
                seat.deadline = None
                reason = f"it has not let go of the registration ({seat.reason})"
                effects += [self._note("stopped", seat, reason), Stop(key, reason, seat.claim.identity)]
        return effects

    # Parts of the above.

    def _stale(self, seat: _Seat, event: Event) -> bool:
        return bool(getattr(event, "epoch", seat.epoch) != seat.epoch)

    def _same(self, one: Any, other: Any) -> bool:
        return bool(one == other)

    def _in_order(self, effects: list[Effect]) -> list[Effect]:
        """Disarm, record (once), and then what is to be done in the knowledge of both."""
        first = [effect for effect in effects if isinstance(effect, Disarm)]
        record: list[Effect] = [Record()] if any(isinstance(effect, Record) for effect in effects) else []
        return [*first, *record, *(effect for effect in effects if not isinstance(effect, Disarm | Record))]

    def _fill(self, now: int) -> list[Effect]:
        if self._unswept:
            return []
        room = self.policy.limit - sum(seat.standing is not _WAITING for seat in self._line.values())
        effects: list[Effect] = []
        for seat in sorted(filter(_Seat.may, self._waiting()), key=self._preference)[: max(room, 0)]:
            effects += self._grant(seat, now)
        return effects

    def _grant(self, seat: _Seat, now: int) -> list[Effect]:
        key = seat.claim.key
        seat.epoch = self.last_epoch = self._next_epoch(now)
        seat.standing, seat.since, seat.stalled, seat.told = _HELD, now, False, ""
        self._unchoose(key)
        if self.policy.kind == "rotate":
            line = list(self._line.items())
            turn = list(self._line).index(key)
            self._line = dict(line[turn:] + line[:turn])
        return [Record(), Arm(key, seat.epoch), Tell(key, "held", seat.epoch, ""), self._note("granted", seat, "")]

    def _next_epoch(self, now: int) -> int:
        return max(self.last_epoch + 1, now)

    def _revoke(self, seat: _Seat, reason: str, now: int) -> list[Effect]:
        seat.standing, seat.since, seat.deadline = _REVOKING, now, now + self._ack_timeout
        seat.reason, seat.told = reason, ""
        return [Disarm(seat.claim.key, seat.epoch)]

    def _make_room(self, reason: str, now: int, *, youngest: bool) -> list[Effect]:
        """Revoke one holder, unless as many places as there are chosen ones are, or become, free."""
        held = sorted(self._held(), key=_by_epoch, reverse=youngest)
        if not held or len(held) + len(self._chosen) <= self.policy.limit:
            return []
        return self._revoke(held[0], reason, now)

    def _tell(self, seat: _Seat) -> list[Effect]:
        what = "cancelled" if seat.cancelled else "revoked"
        if seat.told == what or not (seat.epoch or seat.cancelled):  # there was no grant to revoke
            return []
        seat.told = what
        return [Tell(seat.claim.key, what, seat.epoch, seat.reason), self._note(what, seat, seat.reason)]

    def _leave(self, seat: _Seat) -> list[Effect]:
        self._drop(seat)
        # So that nobody who keeps a duplicate of what it watched is woken by it.
        disarm: list[Effect] = [] if seat.claim.means is Means.COOPERATE else [Disarm(seat.claim.key, seat.epoch)]
        return [*disarm, Record()]

    def _drop(self, seat: _Seat) -> None:
        del self._line[seat.claim.key]
        self._unchoose(seat.claim.key)
        self._unswept.discard(seat.claim.key)

    def _to_front(self, seat: _Seat) -> None:
        self._line = {seat.claim.key: seat, **self._line}

    def _choose(self, key: str) -> None:
        self._unchoose(key)
        self._chosen = [key, *self._chosen][: self.policy.limit]

    def _unchoose(self, key: str) -> None:
        self._chosen = [other for other in self._chosen if other != key]

    def _preference(self, seat: _Seat) -> tuple[int, bool]:
        key, chosen = seat.claim.key, self._chosen
        return chosen.index(key) if key in chosen else len(chosen), seat.stalled

    def _held(self) -> Iterator[_Seat]:
        return (seat for seat in self._line.values() if seat.standing is _HELD)

    def _waiting(self) -> Iterator[_Seat]:
        return (seat for seat in self._line.values() if seat.standing is _WAITING)

    def _note(self, what: str, seat: _Seat, reason: str) -> Note:
        self.counters[what] += 1
        return Note(what, seat.claim.key, reason)


def _entry(seat: _Seat) -> Entry:
    return Entry(seat.claim, seat.standing, seat.epoch, seat.since, seat.paused, seat.stalled)


def _by_epoch(seat: _Seat) -> int:
    return seat.epoch


_Transition = Callable[[Registration, Any, Any, int], "list[Effect]"]

#: All transitions, by the standing of the claim that the event is about (None: of none, or of one that is not known):
#: what is not here changes nothing.
_TRANSITIONS: dict[tuple[Standing | None, type], _Transition] = {
    (None, Claimed): Registration._claimed,
    (None, Gone): Registration._gone,
    (None, Advance): Registration._advance,
    (None, Tick): Registration._tick,
    (_WAITING, Released): Registration._released,
    (_WAITING, Disarmed): Registration._swept,
    (_WAITING, NotDisarmed): Registration._not_swept,
    (_WAITING, Registered): Registration._registered_itself,
    (_WAITING, MoveTo): Registration._move_to,
    (_WAITING, Paused): Registration._paused,
    (_WAITING, Resumed): Registration._resumed,
    (_HELD, Released): Registration._released,
    (_HELD, Stalled): Registration._stalled,
    (_HELD, Paused): Registration._paused,
    (_REVOKING, Released): Registration._released,
    (_REVOKING, Disarmed): Registration._disarmed,
    (_REVOKING, NotDisarmed): Registration._not_disarmed,
    (_REVOKING, Registered): Registration._disarm_again,
    (_REVOKING, MoveTo): Registration._move_to,
    (_REVOKING, Paused): Registration._paused,
    (_REVOKING, Resumed): Registration._resumed,
}
