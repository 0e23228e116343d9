"""`Registration` for asyncio: the same one, whose changes the event loop hears of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from sockshare.core.errors import RegistrationLost

from . import registration as threads


class Registration:
    """This process's registration of one shared socket, for the event loop that claimed it.

    See `sockshare.Registration` for what it promises. Watch it with ``loop.add_reader``, and ``loop.remove_reader`` it
    before you leave its ``async with`` block.

    Attributes:
        name: Of the socket.
        revoked: An `asyncio.Event`: set while it is not held, cleared when it is held again.
    """

    def __init__(self, registration: threads.Registration) -> None:
        self.name = registration.name
        self.revoked = asyncio.Event()
        self._registration = registration
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()  # set at each change
        self._released = False
        registration.watch(self._hear)
        self._take_over()

    @property
    def epoch(self) -> int:
        """As `sockshare.Registration.epoch`."""
        return self._registration.epoch

    def fileno(self) -> int:
        """As `sockshare.Registration.fileno`."""
        return self._registration.fileno()

    def waiting(self) -> bool:
        """As `sockshare.Registration.waiting`."""
        return self._registration.waiting()

    async def wait(self, timeout: float | None = None) -> None:
        """As `sockshare.Registration.wait`."""
        try:
            await asyncio.wait_for(self._wait(lambda: self._registration.held), timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"can't hold the registration of {self.name!r}: not within {timeout:g} s") from None

    async def in_line(self) -> None:
        """Wait until it can be watched, held or not; it raises what `wait` raises."""
        await self._wait(lambda: self._registration.in_line)

    async def release(self) -> None:
        """As `sockshare.Registration.release`, for this task: the last one's releases it."""
        if self.leave():
            # Off the loop: it waits for the broker.
            await self._loop.run_in_executor(None, self._registration.release)

    def leave(self) -> bool:
        """As `release`, without waiting; whether this task's was the last."""
        if self._released:
            return False
        self._released = True
        self._registration.unwatch(self._hear)
        self._take_over()
        return self._registration.leave()

    async def _wait(self, condition: Callable[[], bool]) -> None:
        while self._released or not condition():
            error = self._registration.error if not self._released else self._of_released()
            if error is not None:
                raise error
            self._news.clear()
            await self._news.wait()
        self._take_over()

    def _of_released(self) -> Exception:
        return RegistrationLost(f"can't use the registration of {self.name!r}: it was released")

    def _hear(self) -> None:
        # In the thread of the share.
        try:
            self._loop.call_soon_threadsafe(self._take_over)
        except RuntimeError:  # the loop has ended before the share
            pass

    def _take_over(self) -> None:
        if self._registration.held and not self._released:
            self.revoked.clear()
        else:
            self.revoked.set()
        self._news.set()


class Claiming:
    """What ``share.registration(name)`` returns: enter it with ``async with``."""

    def __init__(self, claim: Callable[[], Awaitable[Registration]], timeout: float | None) -> None:
        self._claim = claim
        self._timeout = timeout
        self._entered: list[Registration] = []

    async def __aenter__(self) -> Registration:
        registration = await self._claim()
        try:
            await registration.wait(self._timeout)
        except BaseException:
            registration.leave()
            raise
        self._entered.append(registration)
        return registration

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._entered.pop().release()
