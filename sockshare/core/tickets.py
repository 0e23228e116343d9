"""Tickets: each is good for one duplicate of one socket, in one process, once, and for a few seconds.

Theory of operation. A ticket is *open* when issued, *in hand-out* from `redeem` until the receiver has said that it has
the descriptor (`acknowledge`: spent) or is known not to have it (`abandon`: open again). Only a hash of the secret is
kept, so neither a core dump nor the time of a look-up tells a secret. Tickets live equally long, so the order of issue
is the order of expiry, and expiring costs nothing for those that stay. Tickets that are gone are remembered for a
while, by the reason, for the log and for their own process; a stranger is never told that a secret was good.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from enum import Enum
from hashlib import sha256

from .errors import TicketRefused

SECRET_BYTES = 16

# So many of the tickets that are gone are remembered, for the reason in the log; not one of them is needed to refuse.
_REMEMBERED = 1024


class Reason(Enum):
    """Why a ticket was refused; the value is for the log."""

    UNKNOWN = "it is unknown"
    FOREIGN = "it was issued to another process"
    EXPIRED = "it has expired"
    USED = "it was used before"
    DROPPED = "it was dropped in favour of newer ones"


# What the peer is told for these is the same.
_STRANGERS = frozenset({Reason.UNKNOWN, Reason.FOREIGN})


class Refusal(Exception):
    """The `__cause__` of a `TicketRefused`: what the log may say, and the peer may not know."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class _Ticket:
    __slots__ = ("expires", "identity", "open", "socket")

    def __init__(self, socket: str, identity: Hashable, expires: float) -> None:
        self.socket = socket
        self.identity = identity
        self.expires = expires
        self.open = True


class Tickets:
    """The tickets of one broker.

    Time is an argument (*now*: seconds, monotonic, never less than in the call before). Not thread-safe.

    Args:
        lifetime: Seconds from issue to expiry.
        per_process: How many tickets one process can have; its oldest is dropped for one more. It asks for those of
            all its sockets at once (`spec.MOST_SOCKETS`), and again if the broker dies meanwhile.
        total: How many tickets there can be; the oldest is dropped for one more.
    """

    def __init__(self, lifetime: float = 5.0, per_process: int = 1024, total: int = 65536) -> None:
        self._lifetime = lifetime
        self._per_process = per_process
        self._total = total
        self._tickets: dict[bytes, _Ticket] = {}  # by hash of the secret, oldest first
        self._of: dict[Hashable, dict[bytes, None]] = {}  # the same by process, oldest first
        self._gone: dict[bytes, tuple[Hashable, Reason]] = {}  # oldest first

    def __len__(self) -> int:
        """How many tickets are open or in hand-out."""
        return len(self._tickets)

    def issue(self, secret: bytes, socket: str, identity: Hashable, now: float) -> None:
        """Make *secret* good for one duplicate of *socket* in the process that is *identity*.

        Args:
            secret: `SECRET_BYTES` bytes that nobody can guess, new for every ticket.

        Raises:
            ValueError: The secret is of another length, or was issued before; nothing has changed.
        """
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"can't issue a ticket: its secret must have {SECRET_BYTES} bytes, not {len(secret)}")
        key = sha256(secret).digest()
        tickets = self._tickets
        if key in tickets or key in self._gone:
            raise ValueError("can't issue a ticket: its secret was issued before")
        own = self._of.setdefault(identity, {})
        if len(own) >= self._per_process:
            self._remove(next(iter(own)), Reason.DROPPED)
        elif len(tickets) >= self._total:
            self._remove(next(iter(tickets)), Reason.DROPPED)
        tickets[key] = _Ticket(socket, identity, now + self._lifetime)
        # Again setdefault: the process's last ticket may just have been dropped, and its entry with it.
        self._of.setdefault(identity, own)[key] = None

    def redeem(self, secrets: Sequence[bytes], identity: Hashable, now: float) -> list[str]:
        """Put all of *secrets* in hand-out, and return the names of their sockets, in order.

        *identity* is the kernel's word for who shows them. The caller ends the hand-out by `acknowledge` or `abandon`.

        Raises:
            TicketRefused: One of them is not good, or is there twice; nothing has changed. Its message is for the peer:
                a ticket of another process is refused to it as an unknown one is, so that trying tells nothing. Its
                `__cause__` is a `Refusal` with the `Reason`, for the log.
        """
        found: list[_Ticket] = []
        for secret in secrets:
            key = sha256(secret).digest()
            ticket = self._tickets.get(key)
            if ticket is None or ticket.identity != identity or not ticket.open or now >= ticket.expires:
                reason = self._reason(key, ticket, identity)
                for opened in found:
                    opened.open = True
                seen = "it is unknown, or another process's" if reason in _STRANGERS else reason.value
                raise TicketRefused(f"can't redeem ticket: {seen}") from Refusal(reason)
            ticket.open = False  # at once, so that the same one twice in a packet is refused
            found.append(ticket)
        return [ticket.socket for ticket in found]

    def acknowledge(self, secrets: Iterable[bytes]) -> None:
        """Spend *secrets*, which the caller had from its own `redeem`: the receiver has the descriptors.

        One that has expired since is ignored: it is good for nothing any more.
        """
        for secret in secrets:
            key = sha256(secret).digest()
            ticket = self._tickets.get(key)
            if ticket is not None and not ticket.open:
                self._remove(key, Reason.USED)

    def abandon(self, secrets: Iterable[bytes]) -> None:
        """Open *secrets* again, which the caller had from its own `redeem`: the receiver got no descriptor.

        They expire when they would have.
        """
        for secret in secrets:
            ticket = self._tickets.get(sha256(secret).digest())
            if ticket is not None:
                ticket.open = True

    def expire(self, now: float) -> int:
        """Drop the tickets whose time is over, in hand-out too; return how many."""
        over = []
        for key, ticket in self._tickets.items():
            if now < ticket.expires:
                break
            over.append(key)
        for key in over:
            self._remove(key, Reason.EXPIRED)
        return len(over)

    def forget(self, identity: Hashable) -> int:
        """Drop the tickets of a process that is dead; return how many."""
        keys = self._of.pop(identity, {})
        for key in keys:
            del self._tickets[key]
        return len(keys)

    def _remove(self, key: bytes, reason: Reason) -> None:
        identity = self._tickets.pop(key).identity
        own = self._of[identity]
        del own[key]
        if not own:
            del self._of[identity]
        gone = self._gone
        gone[key] = (identity, reason)
        if len(gone) > _REMEMBERED:
            del gone[next(iter(gone))]

    def _reason(self, key: bytes, ticket: _Ticket | None, identity: Hashable) -> Reason:
        """Why *identity* can't redeem the ticket."""
        if ticket is None:
            owner, reason = self._gone.get(key, (identity, Reason.UNKNOWN))
            return reason if owner == identity else Reason.FOREIGN
        if ticket.identity != identity:
            return Reason.FOREIGN
        return Reason.EXPIRED if ticket.open else Reason.USED
