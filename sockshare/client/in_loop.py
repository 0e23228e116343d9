"""Hand-overs in an event loop, which attends to the lanes itself; see `exchange`."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from sockshare.core.errors import HandOverTimedOut
from sockshare.core.handover import Kept

from .exchange import Exchange, Introduction, Successor, check_route, to_be_tried_again
from .giving import Transfer, check_all
from .taking import Connection


class LoopExchange:
    """*exchange*, made with ``in_loop``, in the running loop."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._retiring: set[asyncio.Future[None]] = set()
        exchange.on_change.append(functools.partial(self._in_loop, self._changed))
        exchange.on_abandoned = functools.partial(self._in_loop, self._abandoned)
        self._loop.add_reader(exchange.giver.epoll.fileno(), self._heard_of_receivers)
        self._loop.add_reader(exchange.receiver.epoll.fileno(), self._heard_of_givers)

    async def hand_over(
        self,
        items: Iterable[tuple[socket.socket, bytes]],
        to: str | Successor,
        timeout: float,
        route: str,
        key: bytes | None,
    ) -> list[Transfer]:
        """As `Exchange.hand_over`; who is cancelled has its connections as before, as far as they are not gone yet."""
        exchange = self.exchange
        transfers = check_all(items)
        check_route(route)
        deadline = time.monotonic() + timeout
        introduction = exchange.introduction(to)
        waiting: Sequence[Transfer] = transfers
        try:
            while waiting:
                if not introduction.usable(exchange.giver) and not await self._known(introduction, deadline):
                    for one in waiting:
                        one.end(Kept.UNHEARD)
                    break
                with exchange.lock:
                    exchange.check_open()
                    exchange.giver.pump()
                    if not introduction.usable(exchange.giver) and not introduction.known.is_set():
                        continue
                    decided = self._when_decided(waiting)
                    offered = exchange.offer(introduction, waiting, deadline, route, key)
                    self._arm()
                await decided
                waiting = to_be_tried_again(offered, key)
        except BaseException:
            with exchange.lock:
                exchange.giver.decide(transfers)
            raise
        return transfers

    def _when_decided(self, transfers: Sequence[Transfer]) -> asyncio.Future[None]:
        decided: asyncio.Future[None] = self._loop.create_future()
        left = len(transfers)

        def ended(one: Transfer) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._in_loop(_resolve, decided)

        for one in transfers:
            one.ended = ended
        return decided

    async def _known(self, introduction: Introduction, deadline: float) -> bool:
        """Whether it is known who is there, by *deadline*."""
        known: asyncio.Future[None] = self._loop.create_future()
        with self.exchange.lock:
            if introduction.known.is_set():
                return True
            introduction.watchers.append(functools.partial(self._in_loop, _resolve, known))
        try:
            await asyncio.wait_for(known, max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            return False
        return True

    async def receive(self, timeout: float | None) -> tuple[Connection, bytes]:
        """As `Exchange.receive`; the connection does not block."""
        deadline = None if timeout is None else time.monotonic() + timeout
        exchange = self.exchange
        while True:
            with exchange.lock:
                exchange.check_taking()
                if not exchange.receiver.queue:
                    exchange.receiver.pump()
                found = exchange.receiver.pop(blocking=False)
                if found is not None:
                    return found
                exchange.receiver.flush()
            came: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(came)
            try:
                await asyncio.wait_for(came, None if deadline is None else max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise HandOverTimedOut(
                    f"can't receive a connection: none was handed over within {timeout:g} s"
                ) from None
            finally:
                if came in self._waiting:
                    self._waiting.remove(came)
                elif came.cancelled() and self._waiting:  # it was woken, and can't take what came
                    _resolve(self._waiting.popleft())

    async def retires(self, *, yes: bool = True) -> Successor | None:
        """Return when this process is to hand its connections over, and to whom; or when it is not (any more)."""
        exchange = self.exchange
        exchange.watch_retiring()
        while True:
            exchange.check_open()
            successor = exchange.retiring.successor
            if (successor is not None) == yes:
                return successor
            told: asyncio.Future[None] = self._loop.create_future()
            self._retiring.add(told)
            try:
                await told
            finally:
                self._retiring.discard(told)

    def close(self) -> None:
        """Attend to nothing any more; before the exchange is closed."""
        self._loop.remove_reader(self.exchange.giver.epoll.fileno())
        self._loop.remove_reader(self.exchange.receiver.epoll.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self.exchange.on_change.clear()

    def end(self) -> None:
        """The exchange was closed: whoever waits is told."""
        self._changed()

    # In the loop.

    def _in_loop(self, call: Callable[..., None], *arguments: object) -> bool:
        """Call it there; whether there is a loop."""
        if threading.get_ident() == self._thread:
            call(*arguments)
            return True
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            return False  # it has ended
        return True

    def _abandoned(self) -> None:
        self.close()
        self.exchange.close()

    def _heard_of_receivers(self) -> None:
        with self.exchange.lock:
            self.exchange.giver.pump()
            self._arm()  # a word may have to be said again

    def _heard_of_givers(self) -> None:
        with self.exchange.lock:
            self.exchange.receiver.pump()
            count = len(self.exchange.receiver.queue)
        while count and self._waiting:
            count -= 1
            _resolve(self._waiting.popleft())

    def _changed(self) -> None:
        """A refusal, the end, or a reload that begins or is undone."""
        waiting, self._waiting = self._waiting, deque()
        for one in (*waiting, *self._retiring):
            _resolve(one)

    def _arm(self) -> None:
        due = self.exchange.giver.deadline
        if due is None or (self._timer is not None and self._due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        with self.exchange.lock:
            self.exchange.giver.tick(time.monotonic())
            self._arm()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
