"""The thread that does what would hold the loop up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from sockshare.broker.worker import Worker


def test_what_was_given_is_done_in_order_also_if_nobody_waits_for_it_any_more() -> None:
    """A reload that ends cancels its tasks: what one of them has resumed must be resumed."""

    async def body() -> None:
        worker, may, done = Worker("test"), threading.Event(), []

        def note(what: str) -> Callable[[], None]:
            return lambda: done.append(what)

        first = worker.do(may.wait, 10)
        second, third = worker.do(note("second")), worker.do(note("third"))
        waiting = asyncio.ensure_future(asyncio.wait_for(second, 10))
        await asyncio.sleep(0)
        waiting.cancel()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        may.set()
        assert await first
        await third
        assert done == ["second", "third"]

    asyncio.run(body())
