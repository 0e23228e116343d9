"""The part of a share that is about connections which move (docs/handover.md)."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .exchange import Exchange, NotHandedOver, Retiring, Successor


class Hands:
    """What `sockshare.Share` does with connections."""

    def hand_over(
        self,
        connection: socket.socket,
        to: str | Successor,
        state: bytes = b"",
        timeout: float = 5.0,
        *,
        key: bytes | str | None = None,
        route: str = "least_loaded",
    ) -> None:
        """Hand an established *connection* over: on return it is another process's, and this object of it is closed.

        Nobody may use it meanwhile; what this process has read of it and not dealt with goes into *state*.

        Args:
            to: A program, or one process of it (``web:1``), or the `successor` of `retiring`.
            state: Whatever the receiver needs to go on; at most 16 MiB.
            timeout: How long it may take until the receiver has it, seconds.
            key: Connections of one key go to the same receiver, as long as it is there.
            route: Without a key, which of a program's processes gets it: ``least_loaded`` or ``round_robin``.

        Raises:
            NoReceiver: None is there, or as many connections as they take wait with all of them; said at once.
            TimeoutError: It was not taken in time.
            NotPermitted: The section of the receiver's program does not let this one (``receive_from``).
            UnknownProgram: There is no such program or process.
            TypeError: It is no socket, or a TLS connection, whose keys are in this process's memory.
            ValueError: The state is too long, or a file made of the connection is open.
            SockshareError: It is not connected.

            After any of them it is this process's as before, and nobody else's. After another exception, as from a
            signal handler, it is too, unless it is closed: then the receiver has it.
        """
        (left,) = self.hand_over_many([(connection, state)], to, timeout, key=key, route=route) or (None,)
        if left is not None:
            raise left.error

    def hand_over_many(
        self,
        connections: Iterable[tuple[socket.socket, bytes]],
        to: str | Successor,
        timeout: float = 5.0,
        *,
        key: bytes | str | None = None,
        route: str = "least_loaded",
    ) -> list[NotHandedOver]:
        """Hand over many connections, each with its state, in few messages: several times as fast as one by one.

        Returns:
            Those that are still this process's, each with the error that `hand_over` would have raised.

        Raises:
            NotPermitted, UnknownProgram, TypeError, ValueError, SockshareError: As `hand_over`, when that is so of any
                of them; then all are still this process's.
        """
        from .exchange import not_handed_over

        key = key.encode() if isinstance(key, str) else key
        transfers = self._exchanging().hand_over(connections, to, timeout, route, key)
        return not_handed_over(transfers, to, timeout)

    def receive(self, timeout: float | None = None, *, limit: int | None = None) -> tuple[socket.socket, bytes]:
        """Receive a connection that was handed to this process, and its state. From the first call on it takes them.

        The connection is blocking, whatever its giver had made it, and close-on-exec.

        Args:
            timeout: Seconds; None: for ever.
            limit: How many may wait here until they are received; 64, unless said otherwise once.

        Raises:
            TimeoutError: None came in time.
            SockshareError: The share was closed meanwhile.
        """
        exchange = self._exchanging()
        exchange.take_connections(limit)
        return exchange.receive(timeout)

    @property
    def waiting(self) -> int:
        """How many connections were handed to this process and not received yet."""
        return self._exchanging().receiver.intake.waiting

    @property
    def retiring(self) -> Retiring:
        """Set, a `threading.Event`, while a reload wants this process to hand its connections to its ``successor``
        (``drain = hand_over``). When it has, call `retired`. It is cleared again if the reload is undone.
        """
        exchange = self._exchanging()
        exchange.watch_retiring()
        return exchange.retiring

    def retired(self) -> None:
        """Tell the broker that this process has handed over what it had: the reload goes on."""
        self._exchanging().retired()

    def exchange_in_loop(self) -> Exchange:
        """For `sockshare.aio`: the hand-overs of this share, to which an event loop will attend."""
        return self._exchanging(in_loop=True)

    def _exchanging(self, *, in_loop: bool = False) -> Exchange:
        raise NotImplementedError
