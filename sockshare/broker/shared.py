"""One answer for all who ask at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Shared(Generic[Answer]):
    """What *make* makes, one at a time: who asks while it does gets the next one, with all who ask meanwhile.

    So nobody has an answer that was begun before he asked.
    """

    def __init__(self, make: Callable[[], Awaitable[Answer]]) -> None:
        self._make = make
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Answer] | None = None

    async def get(self) -> Answer:
        """The answer, which is not the caller's alone: it may not be changed."""
        if self._next is None:
            self._next = asyncio.create_task(self._made())
        return await asyncio.shield(self._next)

    async def _made(self) -> Answer:
        async with self._turn:
            self._next = None
            return await self._make()
