"""Claims of registrations, as the broker knows them (docs/protocol.md): asked for, kept up across brokers, released.

One thread at a time; `sockshare.client.registration` has the thread for programs, `exec` needs none.

A claim is said again whenever a broker has begun to answer, and every `AGAIN` seconds: the broker holds it by the key,
so that saying it twice changes nothing. All that is said comes in order, also across brokers: one DEALER has one queue.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq

from sockshare.core.errors import (
    BadConfiguration,
    ManagerError,
    NoBroker,
    ProtocolError,
    RegistrationLost,
    SockshareError,
)
from sockshare.kernel.descriptors import close_all

from . import door
from .dialogue import RESEND_FIRST, RESEND_LAST, Answer, Dialogue, checked

if TYPE_CHECKING:
    from sockshare.kernel.gate import Gate

#: A claim that stands is said again this often, seconds.
AGAIN = 10.0
#: What a broker answers for reasons that pass: a manager that is busy, a mistake in the configuration.
_FOR_NOW = (ManagerError, BadConfiguration)
#: How long a visit to the door may take, seconds; then the broker is asked again.
_AT_DOOR = 2.0


class Claim:
    """One claim of the registration of the socket *name*; what it says of itself is the broker's last word.

    Attributes:
        standing: "asked" (no word yet), "waiting" in line, "held", "revoked" (in line again), or "over": released, or
            refused, or cancelled by another's registration.
        epoch: Of the hold, if it is or was held; else 0.
        gate: Once the broker gave it; kept when the claim is over, and the caller's to close.
        tally: An eventfd to which the broker wants added what is taken; as `gate`. None where that does not matter.
        error: Why it is over, if not because we released it.
    """

    __slots__ = (
        "cooperate",
        "due",
        "epoch",
        "error",
        "gate",
        "key",
        "leaves",
        "name",
        "number",
        "pause",
        "standing",
        "tally",
    )

    def __init__(self, name: str, *, cooperate: bool = False) -> None:
        self.name = name
        self.key = os.urandom(16).hex()
        self.cooperate = cooperate
        self.standing = "asked"
        self.epoch = 0
        self.gate: Gate | None = None
        self.tally: int | None = None
        self.error: Exception | None = None
        self.leaves = False  # it is to be released
        self.number = 0
        self.due = 0.0  # when it is said (again)
        self.pause = RESEND_FIRST

    @property
    def quoted(self) -> int:
        """The epoch that releases it; 0: it only waits."""
        # A gate is shut when we hear of it, and the claim waits again. Where there is none, the broker waits for us.
        holds = self.standing == "held" or (self.cooperate and self.standing == "revoked")
        return self.epoch if holds else 0


class Claims:
    """All claims of one process at the broker of *directory*.

    Args:
        changed: Called by `step` with each claim whose standing, epoch or gate has changed.

    Raises:
        NoBroker, OSError: As `Dialogue`.
    """

    def __init__(self, directory: str, changed: Callable[[Claim], None] = lambda claim: None) -> None:
        self._directory = directory
        self._changed = changed
        self._claims: dict[int, Claim] = {}
        self._releases: dict[int, tuple[Claim, int]] = {}  # with the epoch that is released
        self._last = 0
        self._met = False
        self._dialogue = Dialogue(directory)
        try:
            self._handshakes = self._dialogue.handshakes()
        except BaseException:
            self._dialogue.close()
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._dialogue.socket, zmq.POLLIN)
        self._poller.register(self._handshakes, zmq.POLLIN)

    def wake_by(self, fd: int) -> None:
        """Have `step` return when *fd* is readable."""
        self._poller.register(fd, zmq.POLLIN)

    def add(self, claim: Claim) -> None:
        """Say *claim*, from the next step on."""
        self._last += 1
        claim.number = self._last
        self._claims[claim.number] = claim

    def release(self, claim: Claim) -> None:
        """Give *claim* up: in the end it is over."""
        if claim.number in self._claims and not claim.leaves:
            claim.leaves = True
            claim.due, claim.pause = 0.0, RESEND_FIRST

    @property
    def standing(self) -> list[Claim]:
        """Those that are not over."""
        return list(self._claims.values())

    def step(self, timeout: float | None = None) -> None:
        """Say what is due, wait until something comes, but no longer than *timeout* seconds, and take it in.

        Raises:
            ProtocolError: What came is no answer.
        """
        now = time.monotonic()
        times = [] if timeout is None else [now + timeout]
        for claim in self._claims.values():
            if claim.due <= now:
                self._say(claim, now)
            times.append(claim.due)
        # Rounded up: a poll that is over too early would be one of many.
        self._poller.poll(max(0, int((min(times) - now) * 1000) + 1) if times else None)
        self._meet()
        while (answer := self._dialogue.heard()) is not None:
            self._hear(answer)

    def close(self) -> None:
        """Leave; what stands at the broker stands on, until this process ends."""
        if not self._dialogue.socket.closed:
            self._dialogue.socket.disable_monitor()
            self._handshakes.close(0)
        self._dialogue.close()

    def _say(self, claim: Claim, now: float) -> None:
        claim.due = now + claim.pause
        claim.pause = min(claim.pause * 2, RESEND_LAST)
        which: dict[str, object] = {"socket": claim.name, "key": claim.key}
        if claim.leaves:
            self._last += 1
            self._releases[self._last] = (claim, claim.quoted)
            self._dialogue.begin_as(self._last, "release", **which, epoch=claim.quoted)
        else:
            has_gate = claim.gate is not None
            fields = {"gate": has_gate, "cooperate": claim.cooperate, "epoch": claim.epoch}
            self._dialogue.begin_as(claim.number, "claim", **which, **fields)

    def _meet(self) -> None:
        met = False
        while self._handshakes.poll(0):
            self._handshakes.recv_multipart()
            met = True
        # What was said before the first one has waited for it.
        if met and self._met:
            for claim in self._claims.values():
                claim.due, claim.pause = 0.0, RESEND_FIRST
        self._met |= met

    def _hear(self, answer: Answer) -> None:
        number = answer.get("id")
        if not isinstance(number, int):
            return
        if number in self._releases:
            claim, epoch = self._releases.pop(number)
            if claim.number in self._claims:
                self._released(claim, epoch, answer)
        elif number in self._claims:
            claim = self._claims[number]
            try:
                self._take(claim, answer)
            except (SockshareError, OSError) as error:
                self._end(claim, error)
            except (TypeError, ValueError, KeyError):
                sentence = f"can't understand the broker at {self._directory}: it says {answer!r:.80}"
                self._end(claim, ProtocolError(sentence))

    def _take(self, claim: Claim, answer: Answer) -> None:
        if not claim.leaves:
            claim.due, claim.pause = time.monotonic() + AGAIN, RESEND_FIRST
        if "event" not in answer:
            try:
                checked(answer)
            except _FOR_NOW:
                if claim.standing == "asked":
                    raise
                claim.due = time.monotonic() + RESEND_LAST  # what stands, stands
                return
            lost = None if claim.leaves else RegistrationLost(f"can't hold {claim.name!r}: its broker has released it")
            self._end(claim, lost)
            return
        event: dict[str, Any] = answer["event"]
        if "gate" in event:
            self._fetch(claim, bytes.fromhex(event["gate"]))
        elif "present" in event:
            self._present(claim)
        elif "tally" in event:
            self._fetch_tally(claim)
        else:
            self._told(claim, str(event["registration"]), int(event.get("epoch") or 0), str(event.get("reason") or ""))

    def _told(self, claim: Claim, standing: str, epoch: int, reason: str) -> None:
        if standing not in ("waiting", "held", "revoked", "cancelled"):
            return
        if standing == "cancelled":
            self._end(claim, RegistrationLost(f"can't hold {claim.name!r}: {reason or 'another one has registered'}"))
            return
        claim.standing = standing
        if standing == "held":
            claim.epoch = epoch
        if claim.leaves:  # with what it has now
            claim.due = 0.0
        self._changed(claim)

    def _fetch(self, claim: Claim, ticket: bytes) -> None:
        """Redeem a gate's ticket; when that fails for now, the claim is said again and another one comes."""
        from sockshare.kernel.gate import Gate  # not for `exec`, which has none

        if claim.gate is not None or claim.leaves:
            claim.due = 0.0  # say that we have it: who watches it could not be given another
            return
        try:
            ((name, fd),) = door.redeem(self._directory, [ticket], time.monotonic() + _AT_DOOR)
        except door.NoDescriptor:
            raise
        except (NoBroker, PermissionError):
            self._again(claim)
            return
        try:
            if name != f"gate:{claim.key}":
                raise ProtocolError(f"can't take the gate of {claim.name!r}: it came as {name!r}")
            claim.gate = Gate(fd)
        except BaseException:
            close_all([fd])
            raise
        self._changed(claim)

    def _fetch_tally(self, claim: Claim) -> None:
        try:
            fd = door.take(self._directory, f"tally:{claim.key}", time.monotonic() + _AT_DOOR)
        except (SockshareError, OSError):
            return  # without it we only wait longer for our turns
        if claim.tally is None:
            claim.tally = fd
        else:  # of a broker before; another thread may just be using it
            os.dup2(fd, claim.tally, inheritable=False)
            os.close(fd)

    def _present(self, claim: Claim) -> None:
        if claim.gate is None:
            self._again(claim)
            return
        try:
            door.present(self._directory, claim.key, claim.gate.fileno(), time.monotonic() + _AT_DOOR)
        except SockshareError:
            self._again(claim)

    def _again(self, claim: Claim) -> None:
        claim.due = time.monotonic() + claim.pause
        claim.pause = min(claim.pause * 2, RESEND_LAST)

    def _released(self, claim: Claim, epoch: int, answer: Answer) -> None:
        if answer.get("ok") is not True:
            if not isinstance(door.error_of(answer), _FOR_NOW):
                self._end(claim, None)
        # Else what was quoted is not what it had: that came before this answer, and is quoted next.
        elif answer.get("released") or epoch == claim.quoted:
            self._end(claim, None)

    def _end(self, claim: Claim, error: Exception | None) -> None:
        del self._claims[claim.number]
        self._releases = {number: one for number, one in self._releases.items() if one[0] is not claim}
        claim.standing = "over"
        claim.error = error
        self._changed(claim)
