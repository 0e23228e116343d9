"""What a new process that is given up has in hand, and how long that may take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from sockshare.core.steps import Plan
from sockshare.kernel import processes

from .drain import Address, Drainer, has_connections

log = logging.getLogger(__name__)

#: Seconds in which a process that was held back accepts what it was woken for before.
_ACCEPTS_WITHIN = 0.02


async def spare(
    pid: int,
    plan: Plan,
    addresses: Sequence[Address],
    *,
    is_all: bool,
    is_held_back: Callable[[], Awaitable[bool]],
    patience: float,
    outside: float,
) -> float:
    """See *pid* off, which was held back: what it has accepted it finishes, if that takes no longer than *patience*.

    One that would die of its stop signal finishes here, within *outside*; its idle connections are ended from outside.

    Args:
        addresses: Where the TCP ones of its sockets listen; *is_all*: it has no others, of which nobody can tell.
        is_held_back: Whether it could be; otherwise it would take new requests as fast as it finishes others.

    Returns:
        Seconds that it needs between its stop signal and SIGKILL; 0: it may be killed now.
    """
    await asyncio.sleep(_ACCEPTS_WITHIN)
    loop = asyncio.get_running_loop()
    drains_itself = False
    try:
        drains_itself = not plan.drain and processes.catches(pid, plan.stop_signal)
        if is_all and not await loop.run_in_executor(None, has_connections, pid, addresses):
            return 0.0
    except OSError as error:
        log.debug("pid %d: %s", pid, error)
    if drains_itself:
        return patience
    if outside and await is_held_back():
        drainer = Drainer(pid, addresses)
        drainer.end_idle()
        timer = loop.call_later(outside, drainer.stop)

        def drained(how: str) -> None:
            log.info("%s: pid %d, which is given up: %s", plan.program, pid, how)
            drainer.stop()

        await drainer.run(lambda left: None, drained)
        timer.cancel()
    return 0.0
