"""The part of asyncio's share that is about connections which move (docs/handover.md)."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Iterable

from sockshare.core.errors import SockshareError

from .exchange import NotHandedOver, Successor, not_handed_over
from .in_loop import LoopExchange


class Hands:
    """What `sockshare.aio.Share` does with connections."""

    def __init__(self) -> None:
        self._hands: LoopExchange | None = None
        self._closed = False

    async def _with_hands(self) -> LoopExchange:
        raise NotImplementedError

    async def hand_over(
        self,
        connection: socket.socket,
        to: str | Successor,
        state: bytes = b"",
        timeout: float = 5.0,
        *,
        key: bytes | str | None = None,
        route: str = "least_loaded",
    ) -> None:
        """As `sockshare.Share.hand_over`. Of streams: `sockshare.aio.take_apart` gives the connection.

        Who is cancelled has it as before, unless it was just taken; then it is closed here.
        """
        (left,) = await self.hand_over_many([(connection, state)], to, timeout, key=key, route=route) or (None,)
        if left is not None:
            raise left.error

    async def hand_over_many(
        self,
        connections: Iterable[tuple[socket.socket, bytes]],
        to: str | Successor,
        timeout: float = 5.0,
        *,
        key: bytes | str | None = None,
        route: str = "least_loaded",
    ) -> list[NotHandedOver]:
        """As `sockshare.Share.hand_over_many`."""
        key = key.encode() if isinstance(key, str) else key
        hands = self._hands or await self._with_hands()
        return not_handed_over(await hands.hand_over(connections, to, timeout, route, key), to, timeout)

    async def receive(self, timeout: float | None = None, *, limit: int | None = None) -> tuple[socket.socket, bytes]:
        """As `sockshare.Share.receive`; the connection does not block. `put_together` makes streams of it."""
        hands = self._hands or await self._with_hands()
        hands.exchange.take_connections(limit)
        return await hands.receive(timeout)

    async def connections(self, *, limit: int | None = None) -> AsyncGenerator[tuple[socket.socket, bytes], None]:
        """``async for connection, state in share.connections()``: what is handed to this process, to the end of the
        share. Arguments and errors as of `receive`.
        """
        while True:
            try:
                received = await self.receive(limit=limit)
            except SockshareError:
                if self._closed:
                    return
                raise
            yield received

    @property
    def waiting(self) -> int:
        """As `sockshare.Share.waiting`."""
        return 0 if self._hands is None else self._hands.exchange.receiver.intake.waiting

    @property
    def retiring(self) -> Retiring:
        """``successor = await share.retiring.wait()``: a reload wants this process to hand its connections over
        (``drain = hand_over``). When it has, call `retired`.
        """
        return Retiring(self)

    async def retired(self) -> None:
        """As `sockshare.Share.retired`."""
        hands = self._hands or await self._with_hands()
        hands.exchange.retired()


class Retiring:
    """Whether this process is to hand its connections over, and to whom."""

    def __init__(self, share: Hands) -> None:
        self._share = share

    @property
    def successor(self) -> Successor | None:
        """To whom; None while it is not to."""
        hands = self._share._hands
        return None if hands is None else hands.exchange.retiring.successor

    def is_set(self) -> bool:
        """Whether it is to, as far as is known: somebody must have called `wait`."""
        return self.successor is not None

    async def wait(self) -> Successor:
        """Return when it is to.

        Raises:
            SockshareError: The share was closed.
        """
        hands = self._share._hands or await self._share._with_hands()
        successor = await hands.retires()
        assert successor is not None
        return successor

    async def over(self) -> None:
        """Return when it is not to, or not any more: the reload was undone, and this process goes on.

        Raises:
            SockshareError: The share was closed.
        """
        hands = self._share._hands or await self._share._with_hands()
        await hands.retires(yes=False)
