"""What arrives at the shared sockets, and what stands there untaken although somebody holds the registration.

Nothing is done while nothing arrives: an edge-triggered epoll of ours says when something does. From then on the
queue is looked at now and then, until it is empty. So an idle broker sleeps, and a busy server costs it 20 looks a
second.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections.abc import Awaitable, Callable
from functools import partial

from sockshare.kernel import queues
from sockshare.kernel.queues import Waiting

log = logging.getLogger(__name__)

#: Seconds from an arrival to the first look, and between two looks after it.
_FIRST_LOOK, _LOOK_EVERY = 0.01, 0.05
_EDGE = select.EPOLLIN | select.EPOLLET


class _Standing:
    """One socket on which something waits."""

    __slots__ = ("closely", "last", "looked", "since")

    def __init__(self, last: Waiting, now: float) -> None:
        self.last = last
        self.closely: Waiting | None = None
        self.since = self.looked = now


class _Watched:
    __slots__ = ("following", "look_every", "sock", "stall_timeout", "standing")

    def __init__(self, sock: socket.socket, stall_timeout: float, look_every: float) -> None:
        self.sock = sock
        self.stall_timeout = stall_timeout
        self.look_every = look_every
        self.standing: _Standing | None = None
        self.following: asyncio.Task[None] | None = None


class Arrivals:
    """Watches sockets; made in the running loop.

    Args:
        waits: Called at each look at which something still waits.
        stalled: Called when what waits has stood untaken for the socket's stall time-out, and each time again.
    """

    def __init__(self, *, waits: Callable[[str], Awaitable[None]], stalled: Callable[[str], Awaitable[None]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._waits = waits
        self._stalled = stalled
        self._watched: dict[str, _Watched] = {}
        self._names: dict[int, str] = {}
        self._edges = select.epoll()
        self._loop.add_reader(self._edges.fileno(), self._edge)

    def watch(self, name: str, fd: int, *, stall_timeout: float, look_every: float = _LOOK_EVERY) -> None:
        """Watch the socket *fd* under *name*.

        Args:
            stall_timeout: Seconds after which what stands untaken is said to be stalled; 0: never.
            look_every: Seconds between two looks while something waits.
        """
        sock = socket.socket(fileno=os.dup(fd))
        self._watched[name] = _Watched(sock, stall_timeout, look_every)
        self._names[sock.fileno()] = name
        self._edges.register(sock.fileno(), _EDGE)  # reports at once what waits already

    def begin_anew(self, name: str) -> None:
        """Another one holds the registration: its time to take what waits begins now."""
        watched = self._watched.get(name)
        if watched is not None and watched.standing is not None:
            watched.standing.since, watched.standing.closely = self._loop.time(), None

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._edges.fileno())
        for watched in self._watched.values():
            self._edges.unregister(watched.sock)  # before it is closed: others keep the socket (epoll(7), Q6)
            watched.sock.close()
            if watched.following is not None:
                watched.following.cancel()
        self._watched.clear()
        self._edges.close()

    def _edge(self) -> None:
        for fd, _ in self._edges.poll(0):
            name = self._names[fd]
            watched = self._watched[name]
            if watched.standing is None:
                # Enough is known until the queue is empty again. Edge-triggered still: EPOLLHUP is always reported.
                self._edges.modify(fd, select.EPOLLET)
                watched.standing = _Standing(queues.NOTHING, self._loop.time())
                watched.following = self._loop.create_task(self._follow(name, watched))

    async def _follow(self, name: str, watched: _Watched) -> None:
        """Look until nothing waits any more."""
        await asyncio.sleep(min(_FIRST_LOOK, watched.look_every))
        while True:
            try:
                if not await self._still_waits(name, watched):
                    break
            except OSError as error:
                log.warning("%s: can't tell what waits: %s", name, error)
            except Exception:
                log.exception("%s: can't tell what waits", name)
            await asyncio.sleep(self._next_look(watched))
        watched.standing = None
        self._edges.modify(watched.sock.fileno(), _EDGE)

    def _next_look(self, watched: _Watched) -> float:
        """Seconds until then: no later than when what waits may have to be called stalled."""
        standing = watched.standing
        assert standing is not None
        patience = watched.stall_timeout / 2 if standing.closely is None else watched.stall_timeout
        left = standing.since + patience - self._loop.time()
        return left if 0 < left < watched.look_every else watched.look_every

    async def _still_waits(self, name: str, watched: _Watched) -> bool:
        standing, now, patience = watched.standing, self._loop.time(), watched.stall_timeout
        assert standing is not None
        waiting = queues.look(watched.sock)
        before, standing.last = standing.last, waiting
        late, standing.looked = now - standing.looked > max(patience / 2, 5 * _LOOK_EVERY), now
        if not waiting.amount:
            return False
        await self._waits(name)
        # Late: this process was stopped itself, and has not seen what was taken meanwhile.
        if late or waiting.was_taken_from(before):
            standing.since, standing.closely = now, None
        elif patience and standing.closely is None and now - standing.since >= patience / 2:
            # A queue that is as long as before may be one that moves: only who is in it tells.
            since, closely = standing.since, await self._look_closely(watched)
            if standing.since == since:
                standing.closely = closely
        elif patience and standing.closely is not None and now - standing.since >= patience:
            before, since = standing.closely, standing.since
            untaken = not (await self._look_closely(watched)).was_taken_from(before)
            if standing.since != since:
                return True  # it has begun anew meanwhile
            standing.since, standing.closely = now, None
            if untaken:
                await self._stalled(name)
        return True

    async def _look_closely(self, watched: _Watched) -> Waiting:
        return await self._loop.run_in_executor(None, partial(queues.look, watched.sock, closely=True))
