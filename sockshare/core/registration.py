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
from collections.abc import Callable
from typing import Any

from .registration_line import Line, Seat
from .registration_steps import (
    Advance,
    Arm,
    Claimed,
    Disarm,
    Disarmed,
    Effect,
    Entry,
    Event,
    Gone,
    Identity,
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
)

#: Nanoseconds from asking a holder to let go to having it stopped.
ACK_TIMEOUT = 2_000_000_000


class Registration:
    """The registration of one socket. `feed` it events, or `recover` it, and perform the effects in order.

    Args:
        ack_timeout: Nanoseconds after which a holder that was told to let go, and has not, is stopped.

    Attributes:
        last_epoch: The largest that was given.
        counters: How often each of `NOTES` was noted since this broker began.
    """

    def __init__(self, policy: Policy, *, ack_timeout: int = ACK_TIMEOUT) -> None:
        self.policy = policy
        self.last_epoch = 0
        self.counters: Counter[str] = Counter()
        self._ack_timeout = ack_timeout
        self._line = Line(policy.limit)
        self._unswept: set[str] = set()  # whose sweep is not answered yet

    # What the broker asks of it.

    @property
    def claims(self) -> list[Entry]:
        """All claims, in line order."""
        return [seat.entry for seat in self._line]

    @property
    def holders(self) -> list[Entry]:
        """Those that are HELD or REVOKING, in line order."""
        return [seat.entry for seat in self._line if seat.standing is not Standing.WAITING]

    @property
    def fresh(self) -> list[str]:
        """The keys of those that could have the next turn, in line order."""
        return [seat.claim.key for seat in self._line.waiting() if seat.fresh]

    @property
    def deadline(self) -> int | None:
        """When `Tick` is next due, or None."""
        return min([seat.deadline for seat in self._line if seat.deadline is not None], default=None)

    def find(self, key: str) -> Entry | None:
        """The claim *key*, or None if there is none (any more)."""
        seat = self._line.get(key)
        return None if seat is None else seat.entry

    def feed(self, event: Event, now: int) -> list[Effect]:
        """Take *event* at *now*; one that means nothing changes nothing."""
        seat = self._line.get(getattr(event, "key", ""))
        if seat is not None and self._stale(seat, event):
            return []
        transition = _TRANSITIONS.get((None if seat is None else seat.standing, type(event)))
        return self._in_order(transition(self, seat, event, now)) if transition else []

    def record(self) -> dict[str, Any]:
        """What a later broker needs to `recover` this: JSON values only."""
        claims = [seat.record() for seat in self._line]
        return {"last_epoch": self.last_epoch, "chosen": self._line.chosen, "claims": claims}

    @classmethod
    def recover(
        cls, policy: Policy, record: dict[str, Any], now: int, *, ack_timeout: int = ACK_TIMEOUT
    ) -> tuple[Registration, list[Effect]]:
        """The registration of *record*, and the effects that make the kernel agree with it.

        Feed `Gone` for the claims whose processes are dead before anything else, and perform what comes of it after
        these effects. Holders beyond a *policy* that allows fewer than it did are revoked, the youngest first.

        Raises:
            KeyError, TypeError, ValueError: The record is not one of `record`'s.
        """
        registration = cls(policy, ack_timeout=ack_timeout)
        registration.last_epoch = int(record["last_epoch"])
        registration._line = Line(policy.limit, map(Seat.recorded, record["claims"]), record["chosen"])
        return registration, registration._in_order(registration._enter_again(now))

    # Transitions.

    def _enter_again(self, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for seat in self._line.held()[self.policy.limit :]:
            seat.revoke("fewer may hold it now", now, now)
        for seat in self._line:
            key = seat.claim.key
            if seat.standing is Standing.HELD:
                effects.append(Arm(key, seat.epoch))
            elif seat.standing is Standing.REVOKING:
                effects += self._revoke(seat, seat.reason, now)
            elif seat.claim.means is not Means.COOPERATE:  # that one starts its program when told to, and was not
                self._unswept.add(key)
                effects.append(Disarm(key, 0))
        return effects + self._fill(now)

    def _claimed(self, _: None, event: Claimed, now: int) -> list[Effect]:
        seat = Seat(event.claim, now, paused=event.paused)
        self._line.join(seat)
        effects: list[Effect] = [Record(), self._note("claimed", seat, event.claim.means.value)]
        effects += self._registered_latest(seat, now) if self.policy.kind == "latest" else self._fill(now)
        # An unmodified program claims by registering.
        return effects + ([Disarm(event.key, 0)] if seat.claim.means is Means.SUSPEND and not seat.epoch else [])

    def _registered_itself(self, seat: Seat, event: Registered, now: int) -> list[Effect]:
        if self.policy.kind == "latest" and not seat.paused:
            seat.stalled = False
            effects: list[Effect] = [Record(), *self._registered_latest(seat, now)]
        else:
            effects = [self._note("violation", seat, "it registered, and does not hold it")]
        return effects if seat.epoch else [*effects, Disarm(event.key, 0)]

    def _registered_latest(self, newest: Seat, now: int) -> list[Effect]:
        self._line.to_front(newest)
        if newest.paused:
            return []
        effects: list[Effect] = []
        self._line.unchoose(*self._line)
        for seat in self._line:
            if seat is newest or seat.paused:
                continue
            reason = f"cancelled by the registration of {newest.claim.process}"
            # A claim of the library is told, and is over. Other programs can't be told: they wait, suspended.
            seat.cancelled |= seat.claim.means is Means.GATE
            if seat.standing is Standing.HELD:
                effects += self._revoke(seat, reason, now)
            elif seat.cancelled and seat.standing is Standing.WAITING:
                seat.reason = reason
                effects += [*self._leave(seat), *self._tell(seat)]
        return effects + self._fill(now)

    def _released(self, seat: Seat, event: Released, now: int) -> list[Effect]:
        return [*self._leave(seat), self._note("released", seat, f"it was {seat.standing.value}"), *self._fill(now)]

    def _gone(self, _: None, event: Gone, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for seat in self._line:
            if self._same(seat.claim.identity, event.identity):
                self._drop(seat)
                effects += [Record(), self._note("gone", seat, f"it was {seat.standing.value}")]
        return effects + self._fill(now)

    def _swept(self, seat: Seat, event: Disarmed, now: int) -> list[Effect]:
        self._unswept.discard(event.key)
        return self._fill(now)

    def _not_swept(self, seat: Seat, event: NotDisarmed, now: int) -> list[Effect]:
        self._unswept.discard(event.key)
        seat.revoke(f"it can't be kept from it: {event.reason}", now, now + self._ack_timeout)
        return [Record(), self._note("violation", seat, seat.reason), *self._fill(now)]

    def _disarmed(self, seat: Seat, event: Disarmed, now: int) -> list[Effect]:
        effects: list[Effect] = [Record(), *self._tell(seat)]
        seat.wait(now)
        if seat.cancelled:
            self._drop(seat)
        return effects + self._fill(now)

    def _not_disarmed(self, seat: Seat, event: NotDisarmed, now: int) -> list[Effect]:
        told = self._tell(seat)
        return [Record(), *told] if told else []

    def _disarm_again(self, seat: Seat, event: Registered, now: int) -> list[Effect]:
        return [Disarm(event.key, seat.epoch)]

    def _stalled(self, seat: Seat, event: Stalled, now: int) -> list[Effect]:
        if not any(other.fresh for other in self._line.waiting()):
            return []
        seat.stalled = True
        return [self._note("stalled", seat, event.reason), *self._revoke(seat, event.reason, now)]

    def _move_to(self, seat: Seat, event: MoveTo, now: int) -> list[Effect]:
        if not seat.eligible:
            return []
        seat.stalled = False
        self._line.choose(seat)
        effects: list[Effect] = [self._note("moved", seat, "it was asked for")]
        if self._line.crowded() and self._line.held():
            effects += self._revoke(self._line.held()[0], f"moved to {seat.claim.process}", now)
        return effects

    def _paused(self, seat: Seat, event: Paused, now: int) -> list[Effect]:
        if seat.paused:
            return []
        seat.paused = True
        self._line.unchoose(seat)
        effects: list[Effect] = [Record(), self._note("paused", seat, f"it was {seat.standing.value}")]
        if seat.standing is Standing.HELD:
            successor = self._line.get(event.successor or "")
            if successor is not None and successor.eligible:
                self._line.choose(successor)
            effects += self._revoke(seat, "paused", now)
        return effects

    def _resumed(self, seat: Seat, event: Resumed, now: int) -> list[Effect]:
        if seat.cancelled or not (seat.paused or seat.stalled or event.first):
            return []
        seat.paused = seat.stalled = False
        effects: list[Effect] = [Record(), self._note("resumed", seat, "to be the next" if event.first else "")]
        if event.first:
            self._line.to_front(seat)
            self._line.choose(seat)
            if self._line.crowded() and self._line.held():
                effects += self._revoke(self._line.held()[-1], f"{seat.claim.process} takes over again", now)
        return effects + self._fill(now)

    def _advance(self, _: None, event: Advance, now: int) -> list[Effect]:
        held = self._line.held()
        may = [seat for seat in self._line.waiting() if seat.fresh and event.to in (None, seat.claim.key)]
        following = may[0] if may else None
        if self.policy.kind != "rotate" or not held or following is None:
            return []
        self._line.choose(following)
        return self._revoke(held[0], "its turn is over", now)

    def _tick(self, _: None, event: Tick, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for seat in self._line:
            if seat.deadline is not None and now >= seat.deadline:
                seat.deadline = None
                effects += self._late(seat, now)
        return effects

    # Parts of the above.

    def _stale(self, seat: Seat, event: Event) -> bool:
        return bool(getattr(event, "epoch", seat.epoch) != seat.epoch)

    def _same(self, one: Identity, other: Identity) -> bool:
        return one == other

    def _late(self, seat: Seat, now: int) -> list[Effect]:
        reason = f"it has not let go of the registration ({seat.reason})"
        return [self._note("stopped", seat, reason), Stop(seat.claim.key, reason, seat.claim.identity)]

    def _in_order(self, effects: list[Effect]) -> list[Effect]:
        """Disarm, record (once), and then what is to be done in the knowledge of both."""
        disarm: list[Effect] = []
        record: list[Effect] = []
        rest: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Disarm):
                disarm.append(effect)
            elif isinstance(effect, Record):
                record = [effect]
            else:
                rest.append(effect)
        return disarm + record + rest

    def _fill(self, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for seat in [] if self._unswept else self._line.following():
            effects += self._grant(seat, now)
        return effects

    def _grant(self, seat: Seat, now: int) -> list[Effect]:
        key = seat.claim.key
        self.last_epoch = epoch = self._next_epoch(now)
        seat.hold(epoch, now)
        self._line.unchoose(seat)
        if self.policy.kind == "rotate":
            self._line.turn_to(seat)
        return [Record(), Arm(key, epoch), Tell(key, "held", epoch, ""), self._note("granted", seat, "")]

    def _next_epoch(self, now: int) -> int:
        return max(self.last_epoch + 1, now)

    def _revoke(self, seat: Seat, reason: str, now: int) -> list[Effect]:
        seat.revoke(reason, now, now + self._ack_timeout)
        return [Disarm(seat.claim.key, seat.epoch)]

    def _tell(self, seat: Seat) -> list[Effect]:
        what = "cancelled" if seat.cancelled else "revoked"
        if seat.told == what or not (seat.epoch or seat.cancelled):  # there was no grant to revoke
            return []
        seat.told = what
        return [Tell(seat.claim.key, what, seat.epoch, seat.reason), self._note(what, seat, seat.reason)]

    def _leave(self, seat: Seat) -> list[Effect]:
        self._drop(seat)
        # So that nobody who keeps a duplicate of what it watched is woken by it.
        disarm: list[Effect] = [] if seat.claim.means is Means.COOPERATE else [Disarm(seat.claim.key, seat.epoch)]
        return [*disarm, Record()]

    def _drop(self, seat: Seat) -> None:
        self._line.leave(seat)
        self._unswept.discard(seat.claim.key)

    def _note(self, what: str, seat: Seat, reason: str) -> Note:
        self.counters[what] += 1
        return Note(what, seat.claim.key, reason)


_Transition = Callable[[Registration, Any, Any, int], "list[Effect]"]

#: All transitions, by the standing of the claim that the event is about (None: of none, or of one that is not known):
#: what is not here changes nothing.
_TRANSITIONS: dict[tuple[Standing | None, type], _Transition] = {
    (None, Claimed): Registration._claimed,
    (None, Gone): Registration._gone,
    (None, Advance): Registration._advance,
    (None, Tick): Registration._tick,
    (Standing.WAITING, Released): Registration._released,
    (Standing.WAITING, Disarmed): Registration._swept,
    (Standing.WAITING, NotDisarmed): Registration._not_swept,
    (Standing.WAITING, Registered): Registration._registered_itself,
    (Standing.WAITING, MoveTo): Registration._move_to,
    (Standing.WAITING, Paused): Registration._paused,
    (Standing.WAITING, Resumed): Registration._resumed,
    (Standing.HELD, Released): Registration._released,
    (Standing.HELD, Stalled): Registration._stalled,
    (Standing.HELD, Paused): Registration._paused,
    (Standing.REVOKING, Released): Registration._released,
    (Standing.REVOKING, Disarmed): Registration._disarmed,
    (Standing.REVOKING, NotDisarmed): Registration._not_disarmed,
    (Standing.REVOKING, Registered): Registration._disarm_again,
    (Standing.REVOKING, MoveTo): Registration._move_to,
    (Standing.REVOKING, Paused): Registration._paused,
    (Standing.REVOKING, Resumed): Registration._resumed,
}
