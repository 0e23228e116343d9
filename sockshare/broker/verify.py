"""Proof that a new process answers: a page, over a connection that is found among that process's descriptors.

The listener is shared, so any process of the program may take the connection; one that a sibling took proves nothing
and is tried again. Once the new one has taken it, it need take nothing else until it has answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sockshare.kernel import connections, processes
from sockshare.kernel.connections import Connection

from .drain import Address

_LOOK_EVERY = 0.002
_AGAIN_AFTER = 0.005
_LONGEST = 65536


class Wrong(Exception):
    """The new process answered, and not as it has to."""


async def verify(pid: int, address: Address, path: str, taken: Callable[[], Awaitable[None]]) -> str:
    """Ask for *path* until a process of *pid*'s tree has answered; what it said, in words. The caller bounds the time.

    Args:
        taken: Called once that tree has accepted the connection, before anything is asked.

    Raises:
        Wrong: It answered with something else than 2xx, or closed the connection.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, address.port, family=address.family, limit=_LONGEST)
        except OSError:
            await asyncio.sleep(_AGAIN_AFTER)
            continue
        try:
            taker = await _taker(writer.get_extra_info("sockname"), address, pid)
            if taker is None:
                await asyncio.sleep(_AGAIN_AFTER)
                continue
            await taken()
            # The name that a client on this machine would use; not kept alive, so that nothing of it is left to drain.
            name = f"[{host}]" if ":" in host else host
            head = f"GET {path} HTTP/1.1\r\nHost: {name}:{address.port}\r\nUser-Agent: sockshare\r\n"
            try:
                writer.write(f"{head}Connection: close\r\n\r\n".encode())
                status = (await reader.readline()).decode("latin-1").split()
            except (OSError, ValueError) as error:
                raise Wrong(f"it broke the connection ({error})") from None
            if len(status) < 2 or not status[0].startswith("HTTP/"):
                raise Wrong("it closed the connection without an HTTP answer")
            if not status[1].startswith("2"):
                raise Wrong(f"it answered {' '.join(status[1:])}")
            return f"{path} answered {' '.join(status[1:])} from pid {taker}"
        finally:
            writer.close()


async def _taker(ours: tuple[str, int], address: Address, pid: int) -> int | None:
    """Which process of *pid*'s tree has accepted the connection whose other end is *ours*; None if it is none."""
    loop = asyncio.get_running_loop()
    while True:
        one = await loop.run_in_executor(None, _accepted, ours, address)
        if one is not None:
            for _ in range(2):
                taker = await loop.run_in_executor(None, _owner, pid, one)
                if taker is not None:
                    return taker
                # Accepting gives a connection its inode an instant before it has a descriptor.
                await asyncio.sleep(_LOOK_EVERY)
            return None
        await asyncio.sleep(_LOOK_EVERY)


def _accepted(ours: tuple[str, int], address: Address) -> Connection | None:
    return next((one for one in connections.established(*address) if one.inode and one.remote == ours[:2]), None)


def _owner(pid: int, one: Connection) -> int | None:
    owned = connections.connections_of(processes.tree(pid), [one])
    return next((member for member, mine in owned.items() if mine), None)
