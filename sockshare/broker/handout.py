"""Descriptors against tickets: what the door gives to whom (`door.Tickets`)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sockshare.core.errors import NotPermitted, TicketRefused
from sockshare.core.tickets import SECRET_BYTES, Tickets
from sockshare.kernel.peers import Identity, Peer, identity

from .gates import GATE, TALLY
from .introductions import LANE, Introductions
from .roster import Known, Managed
from .state import State

log = logging.getLogger(__name__)

#: Tickets for gates that are remembered until they are acknowledged.
_GATE_TICKETS = 4096


class HandOut:
    """What is handed out, and to whom; see `door.Tickets` for what the door asks of it.

    Args:
        notify_path: The path of a managed process's notify socket.
    """

    def __init__(self, state: State, notify_path: Callable[[Managed], Awaitable[str]]) -> None:
        self._state = state
        self._notify_path = notify_path
        self._tickets = Tickets()
        self._gate_tickets: dict[bytes, tuple[str, str]] = {}  # secret: socket and key of the claim
        self.introductions = Introductions(state, self._secret_for)

    def expire(self) -> None:
        """Drop the tickets whose time is over."""
        self._tickets.expire(time.monotonic())

    def died(self, known: Known) -> None:
        """A known process has died."""
        self._tickets.forget(known.identity)
        self.introductions.died(known)

    def redeem(self, secrets: Sequence[bytes], peer: Peer, pidfd: int | None) -> list[tuple[str, int]]:
        """See `door.Tickets`."""
        try:
            names = self._tickets.redeem(secrets, self._identity(peer, pidfd), time.monotonic())
        except ProcessLookupError:
            raise TicketRefused("can't redeem ticket: its process has died") from None
        except TicketRefused as error:
            self._state.refused(peer.pid, f"{error} ({error.__cause__})")
            raise
        try:
            return [(name, self._descriptor(name)) for name in names]
        except LookupError:
            raise TicketRefused("can't redeem ticket: its claim is over") from None

    def hand_out(self, name: str, peer: Peer, pidfd: int | None) -> int:
        """See `door.Tickets`: what a claim's process counts in is its own."""
        try:
            who = self._identity(peer, pidfd)
        except ProcessLookupError:
            raise TicketRefused("can't hand out without a ticket: the process has died") from None
        if not name.startswith(TALLY):
            raise TicketRefused(f"can't hand out {name!r} without a ticket: ask for one over the dialogue")
        return self._state.registrations.claims.tally_of(name[len(TALLY) :], who)

    async def begin_program(
        self, known: Known, sockets: Sequence[str], warning: str
    ) -> tuple[dict[str, object], list[str]]:
        """What *known* begins a program with: what it is told of itself, and the names of its sockets.

        Raises:
            NotPermitted, UnknownSocket, ManagerError: It can't.
        """
        managed = self._state.managed_of(known, known.identity.pid)
        names = list(sockets or self._state.programs[managed.program].sockets)
        for name in names:
            self._state.entitled(known, name)
        if warning and managed.warning != warning:
            log.warning("%s: %s", managed.name, warning)
            managed.warning = warning
            self._state.roster.note(managed)
        notify = await self._notify_path(managed)
        return {"program": managed.program, "process": managed.name, "notify": notify}, names

    def _watch_registration(self, known: Known, name: str) -> None:
        if self._state.sockets[name].registration != "shared":
            self._state.registrations.handed_out(self._state.managed_of(known, known.identity.pid), [name])

    def _identity(self, peer: Peer, pidfd: int | None) -> Identity:
        known = self._state.roster.known(peer.pid)
        if known is not None and pidfd is not None and known.identity.inode == os.fstat(pidfd).st_ino:
            return known.identity
        return identity(peer.pid, pidfd)

    def _descriptor(self, name: str) -> int:
        if name.startswith(GATE):
            return self._state.registrations.claims.gate_of(name[len(GATE) :])
        if name.startswith(LANE):
            return self.introductions.descriptor(name)
        return self._state.shared[name][1]

    def acknowledge(self, secrets: Sequence[bytes]) -> None:
        """See `door.Tickets`."""
        self._tickets.acknowledge(secrets)
        self.introductions.acknowledged(secrets)
        for secret in secrets:
            socket_and_key = self._gate_tickets.pop(secret, None)
            if socket_and_key is not None:
                self._state.registrations.claims.eligible(*socket_and_key)

    def abandon(self, secrets: Sequence[bytes]) -> None:
        """See `door.Tickets`."""
        self._tickets.abandon(secrets)

    def may_present(self, key: str, peer: Peer, pidfd: int | None) -> None:
        """See `door.Tickets`."""
        try:
            who = self._identity(peer, pidfd)
        except ProcessLookupError:
            raise NotPermitted("can't take a gate: its process has died") from None
        self._state.registrations.claims.may_present(key, who)

    def presented(self, key: str, fd: int) -> None:
        """See `door.Tickets`."""
        self._state.registrations.claims.presented(key, fd)

    def gate_ticket(self, known: Known, name: str, key: str) -> str:
        """A ticket for the gate of the claim *key* on the socket *name*, for *known*."""
        secret = self._secret_for(known, GATE + key)
        self._gate_tickets[secret] = (name, key)
        if len(self._gate_tickets) > _GATE_TICKETS:
            del self._gate_tickets[next(iter(self._gate_tickets))]
        return secret.hex()

    def _secret_for(self, known: Known, name: str) -> bytes:
        secret = os.urandom(SECRET_BYTES)
        self._tickets.issue(secret, name, known.identity, time.monotonic())
        return secret

    def issue(self, asking: Known, name: str | None, target: Known) -> dict[str, Any]:
        """A ticket for the socket *name*, which *asking* wants for *target*, as the answer has it.

        Raises:
            NotPermitted, UnknownSocket, ProtocolError: One of them may not have it, or there is no such socket.
        """
        self._state.entitled(asking, name)
        if target is not asking:
            self._state.entitled(target, name)
        assert name is not None
        secret = self._secret_for(target, name)
        self._watch_registration(target, name)
        return {"ok": True, "socket": name, "ticket": secret.hex()}
