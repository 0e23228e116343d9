"""The line in which the claims of one socket stand: their order, and who comes next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .registration_steps import Claim, Entry, Means, Standing

_WAITING, _HELD, _REVOKING = Standing


class Seat:
    """A claim in the line, as it stands.

    Attributes:
        cancelled: It leaves as soon as it has let go.
        reason: Why it is to let go.
        told: What its process knows of that: nothing, `revoked` or `cancelled`.
        deadline: When it is to be stopped, for it has not let go; or None.
    """

    __slots__ = (
        "_words",
        "cancelled",
        "claim",
        "deadline",
        "epoch",
        "paused",
        "reason",
        "since",
        "stalled",
        "standing",
        "told",
    )

    def __init__(self, claim: Claim, since: int, *, paused: bool = False) -> None:
        self.claim = claim
        key, pid, identity, process, program, means, managed = claim
        # Once, as all of the line is recorded at each move.
        self._words = [key, pid, list(identity), process, program, means.value, managed]
        self.standing = _WAITING
        self.epoch = 0
        self.since = since
        self.paused = paused
        self.stalled = self.cancelled = False
        self.reason = self.told = ""
        self.deadline: int | None = None

    @property
    def eligible(self) -> bool:
        """Whether it can be granted, as soon as it waits and there is a place."""
        return self.standing is not _HELD and not self.paused and not self.cancelled

    @property
    def fresh(self) -> bool:
        """Whether it can be granted before one that has stalled."""
        return self.eligible and not self.stalled

    @property
    def entry(self) -> Entry:
        return Entry(self.claim, self.standing, self.epoch, self.since, self.paused, self.stalled)

    def wait(self, now: int) -> None:
        self.standing, self.epoch, self.since, self.deadline = _WAITING, 0, now, None

    def hold(self, epoch: int, now: int) -> None:
        self.standing, self.epoch, self.since, self.stalled = _HELD, epoch, now, False

    def revoke(self, reason: str, now: int, deadline: int) -> None:
        self.standing, self.since, self.deadline = _REVOKING, now, deadline
        self.reason, self.told = reason, ""

    def record(self) -> dict[str, Any]:
        """JSON values for `recorded`."""
        return {
            "claim": self._words,
            "standing": self.standing.value,
            "epoch": self.epoch,
            "since": self.since,
            "paused": self.paused,
            "stalled": self.stalled,
            "cancelled": self.cancelled,
            "reason": self.reason,
        }

    @classmethod
    def recorded(cls, record: dict[str, Any]) -> Seat:
        """The seat of *record*, whose process may not have been told anything."""
        # A later version may add to it, at the end.
        key, pid, (made, start, inode), process, program, means, managed = record["claim"][:7]
        identity = int(made), int(start), int(inode)
        claim = Claim(str(key), int(pid), identity, str(process), str(program), Means(means), int(managed))
        seat = cls(claim, int(record["since"]), paused=bool(record["paused"]))
        seat.standing, seat.epoch = Standing(record["standing"]), int(record["epoch"])
        seat.stalled, seat.cancelled = bool(record["stalled"]), bool(record["cancelled"])
        seat.reason = str(record["reason"])
        return seat


class Line:
    """Seats by key, in order, for *limit* places."""

    def __init__(self, limit: int, seats: Iterable[Seat] = (), chosen: Iterable[str] = ()) -> None:
        self._limit = limit
        self._seats = {seat.claim.key: seat for seat in seats}
        self._chosen = [key for key in chosen if key in self._seats]  # the latest choice first

    def __iter__(self) -> Iterator[Seat]:
        """All seats, in order; the line may change meanwhile."""
        return iter(list(self._seats.values()))

    def get(self, key: str) -> Seat | None:
        return self._seats.get(key)

    @property
    def chosen(self) -> list[str]:
        """Who comes next, before anybody else."""
        return list(self._chosen)

    def held(self) -> list[Seat]:
        """Those that hold, the longest first."""
        held = [seat for seat in self._seats.values() if seat.standing is _HELD]
        return sorted(held, key=lambda seat: seat.epoch)

    def waiting(self) -> list[Seat]:
        return [seat for seat in self._seats.values() if seat.standing is _WAITING]

    def following(self) -> list[Seat]:
        """Who is to have the free places: those chosen, those that have not stalled, each in order."""
        waiting = self.waiting()
        free = self._limit - (len(self._seats) - len(waiting))
        if free <= 0:
            return []
        return sorted([seat for seat in waiting if seat.eligible], key=self._preference)[:free]

    def crowded(self) -> bool:
        """Whether those chosen need a place more than there are free, or to become so."""
        return sum(seat.standing is _HELD for seat in self._seats.values()) + len(self._chosen) > self._limit

    def join(self, seat: Seat) -> None:
        """To the end."""
        self._seats[seat.claim.key] = seat

    def leave(self, seat: Seat) -> None:
        del self._seats[seat.claim.key]
        self.unchoose(seat)

    def to_front(self, seat: Seat) -> None:
        self._seats = {seat.claim.key: seat, **self._seats}

    def turn_to(self, seat: Seat) -> None:
        """Turn the line, as a ring, until *seat* is in front."""
        seats = list(self._seats.items())
        at = list(self._seats).index(seat.claim.key)
        self._seats = dict(seats[at:] + seats[:at])

    def choose(self, seat: Seat) -> None:
        """*seat* comes next; no more are chosen than can hold."""
        self.unchoose(seat)
        self._chosen = [seat.claim.key, *self._chosen][: self._limit]

    def unchoose(self, *seats: Seat) -> None:
        keys = [seat.claim.key for seat in seats]
        self._chosen = [key for key in self._chosen if key not in keys]

    def _preference(self, seat: Seat) -> tuple[int, bool]:
        key, chosen = seat.claim.key, self._chosen
        return chosen.index(key) if key in chosen else len(chosen), seat.stalled
