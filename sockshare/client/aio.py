"""The library for asyncio: the same share, asked off the loop."""

from __future__ import annotations

import asyncio
import functools
import os
import socket as sockets_of_python
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from sockshare.core.errors import SockshareError

from . import finding, sync
from .aio_hands import Hands
from .aio_registration import Claiming, Registration
from .in_loop import LoopExchange

_T = TypeVar("_T")


def attach(endpoint: str | None = None, timeout: float = finding.PATIENCE) -> Attaching:
    """Attach as `sockshare.attach` does: ``await`` it, or enter it with ``async with``. It raises what that raises."""
    return Attaching(functools.partial(sync.attach, endpoint, timeout))


class Share(Hands):
    """What this process shares, for the event loop that attached; see `sockshare.Share` for what each method does.

    The sockets are the very objects of `sockshare.Share`. asyncio's ``create_server(sock=...)`` and ``start_server``
    call ``listen`` on what they are given, which changes the backlog for every process that shares it: watch it with
    ``loop.add_reader`` and accept there, and ``loop.remove_reader`` it before `close`. A method that is cancelled
    goes on in its thread until the broker has answered or the time-out has passed.
    """

    def __init__(self, share: sync.Share, thread: ThreadPoolExecutor) -> None:
        Hands.__init__(self)
        self._share = share
        self._thread = thread
        self._pid = os.getpid()  # threads don't follow a fork
        self.program = share.program
        self.process = share.process

    async def __aenter__(self) -> Share:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def sockets(self) -> tuple[str, ...]:
        """As `sockshare.Share.sockets`."""
        return self._share.sockets()

    async def socket(self, name: str) -> sockets_of_python.socket:
        """As `sockshare.Share.socket`."""
        return await self._run(functools.partial(self._share.socket, name))

    def registration(self, name: str, timeout: float | None = None) -> Claiming:
        """As `sockshare.Share.registration`, for ``async with``; one for all tasks of this process."""
        return Claiming(functools.partial(self.claim, name), timeout)

    async def claim(self, name: str) -> Registration:
        """Get in line for the registration of *name*, without waiting until it is held; `Registration.release` it."""
        return Registration(await self._run(functools.partial(self._share.claim, name)))

    async def ready(self, status: str = "") -> None:
        """As `sockshare.Share.ready`."""
        await self._run(functools.partial(self._share.ready, status))

    async def duplicate(self, name: str, pid: int) -> bytes:
        """As `sockshare.Share.duplicate`."""
        return await self._run(functools.partial(self._share.duplicate, name, pid))

    async def redeem(self, ticket: bytes) -> sockets_of_python.socket:
        """As `sockshare.Share.redeem`."""
        return await self._run(functools.partial(self._share.redeem, ticket))

    async def close(self) -> None:
        """As `sockshare.Share.close`; may be called again."""
        self._closed = True
        hands, self._hands = self._hands, None
        if hands is not None:
            hands.close()
        # Not by our thread: it may wait for a broker, and after a fork it is not there.
        closing = asyncio.get_running_loop().run_in_executor(None, self._share.close)

        def end(_: object) -> None:
            self._thread.shutdown(wait=False)
            if hands is not None:
                hands.end()

        closing.add_done_callback(end)
        await asyncio.shield(closing)  # who is cancelled here has closed it all the same

    async def _with_hands(self) -> LoopExchange:
        exchange = await self._run(self._share.exchange_in_loop)
        if self._closed:  # meanwhile
            raise _closed()
        if self._hands is None:
            self._hands = LoopExchange(exchange)
        return self._hands

    async def _run(self, call: Callable[[], _T]) -> _T:
        if os.getpid() != self._pid:
            raise SockshareError(
                f"can't ask the broker: this share belongs to pid {self._pid}, not to its fork; attach again"
            )
        if self._closed:
            raise _closed()
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _closed() -> SockshareError:
    return SockshareError("can't ask the broker: this share is closed; attach again")


class Attaching:
    """What `attach` returns: await it for a `Share`, or enter it."""

    def __init__(self, call: Callable[[], sync.Share]) -> None:
        self._call = call
        self._share: Share | None = None

    def __await__(self) -> Generator[object, None, Share]:
        return self._attach().__await__()

    async def __aenter__(self) -> Share:
        self._share = await self._attach()
        return self._share

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._share is not None:
            await self._share.close()

    async def _attach(self) -> Share:
        thread = ThreadPoolExecutor(1, "sockshare")
        try:
            return Share(await asyncio.get_running_loop().run_in_executor(thread, self._call), thread)
        except BaseException:
            thread.shutdown(wait=False)
            raise
