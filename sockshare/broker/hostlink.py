"""The broker's end of the link to its host: questions with answers, and the journal (docs/protocol.md, the link)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sockshare.core import versions
from sockshare.core.errors import ManagerError, ManagerSilent, ProtocolError
from sockshare.kernel.channel import Channel, Message
from sockshare.kernel.descriptors import close_all

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode  # a tenth of the time that json takes for a record of many claims
#: Seconds that a host may take for an answer. circusd answers in milliseconds, unless one of its own hooks blocks it.
ANSWER_WITHIN = 10.0
#: Seconds for which what must not be done before it is recorded waits for a host that does not read.
_RECORDED_WITHIN = 1.0
#: Bytes that may wait for such a host. One that is stopped reads nothing, and what happens is recorded all the same.
_MOST_UNSENT = 64 * 1024 * 1024


class HostLink:
    """The link; made inside the running loop that serves it."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_message: Callable[[Message, list[int]], None],
        on_end: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(sock)
        self._on_message = on_message
        self._on_end = on_end
        self._asked: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._next = 0
        self._writing = False
        self._lent: list[int] = []  # descriptors that the link may not have sent yet
        self._unrecorded: deque[tuple[float, asyncio.Future[None]]] = deque()  # until when each waits at most
        self._loop.add_reader(self._channel.fileno(), self._readable)

    async def ask(self, verb: str, within: float = ANSWER_WITHIN, **fields: Any) -> Message:
        """Ask the host; descriptors that come with the answer are closed.

        Raises:
            ManagerError: The host, or the manager behind it, refused.
            ManagerSilent: One of them did not answer in time.
        """
        answer, fds = await self.ask_with_descriptors(verb, within, **fields)
        close_all(fds)
        return answer

    async def ask_with_descriptors(
        self, verb: str, within: float = ANSWER_WITHIN, **fields: Any
    ) -> tuple[Message, list[int]]:
        """As `ask`; the descriptors are the caller's."""
        self._next += 1
        number = self._next
        answered = self._asked[number] = self._loop.create_future()
        try:
            self._send({"type": "ask", "id": number, "verb": verb, **fields})
            answer, fds = await asyncio.wait_for(answered, within)
        except asyncio.TimeoutError:
            raise ManagerSilent(f"can't {verb}: the manager did not answer within {within:g} s") from None
        finally:
            del self._asked[number]
        if not answer.get("ok"):
            close_all(fds)
            kind = ManagerSilent if answer.get("silent") else ManagerError
            raise kind(str(answer.get("message", f"can't {verb}: the host refused")))
        if answer.get("fds") and not fds:
            raise ManagerError(f"can't {verb}: the broker may open no more descriptors (RLIMIT_NOFILE)")
        return answer, fds

    def give_up(self, reason: str) -> None:
        """Tell the host that we can't serve it, and why; it tells those who wait for a broker."""
        self._send({"type": "unreadable", "version": versions.LINK, "message": reason})

    def tell(self, number: int, fields: dict[str, Any]) -> None:
        """Answer the host's question *number*."""
        self._send({"type": "told", "id": number, **fields})

    def journal(self, key: str, record: object) -> None:
        """Have the host keep *record* under *key*; None forgets it. When our death does not lose it, `recorded` tells.

        What a process has written to a local socket is read by the other end even after the writer was killed.
        """
        self._sent(self._channel.send_line, _encode({"type": "journal", "key": key, "record": record}) + b"\n")

    def keep(self, key: str, fd: int) -> None:
        """Have the host keep a duplicate of *fd* under *key* for the next broker, in place of an earlier one.

        As `journal`. A host whose store is full says so in its log, and keeps nothing.
        """
        duplicate = os.dup(fd)  # the caller may close its own before the link has room
        self._lent.append(duplicate)
        self._send({"type": "keep", "key": key}, [duplicate])
        self._take_back()

    def recorded(self) -> asyncio.Future[None] | None:
        """Done once our death does not lose what was said before; None if it is so now: unless the link is full.

        It is full only if the host does not read. Then this is done a second later in any case: a manager that is
        stopped keeps nobody from the sockets, and what it was told is lost only if we die before it goes on.
        """
        if not self._channel.wants_write:
            return None
        until = self._loop.time() + _RECORDED_WITHIN
        recorded = self._loop.create_future()
        self._unrecorded.append((until, recorded))
        self._loop.call_at(until, self._go_on, until)
        return recorded

    def _go_on(self, now: float = 0.0) -> None:
        while self._unrecorded and (self._unrecorded[0][0] <= now or not self._channel.wants_write):
            recorded = self._unrecorded.popleft()[1]
            if not recorded.done():  # nobody waits for it any more
                recorded.set_result(None)

    def forget(self, key: str) -> None:
        """Have the host close what it keeps under *key*, if anything."""
        self._send({"type": "forget", "key": key})

    def _take_back(self) -> None:
        if not self._channel.wants_write:
            close_all(self._lent)
            self._lent.clear()

    def _send(self, message: Message, fds: Sequence[int] = ()) -> None:
        self._sent(self._channel.send, message, fds)

    def _sent(self, send: Callable[..., None], *what: Any) -> None:
        try:
            send(*what)
        except OSError as error:
            self._fail(error)
            return
        if self._channel.wants_write and not self._writing:
            self._loop.add_writer(self._channel.fileno(), self._writable)
            self._writing = True
        if self._channel.unsent > _MOST_UNSENT:
            self._on_end("the host does not read what it is told")

    def _writable(self) -> None:
        try:
            self._channel.flush()
        except OSError as error:
            self._fail(error)
            return
        self._take_back()
        self._go_on()
        if self._writing and not self._channel.wants_write:
            self._writing = False
            self._loop.remove_writer(self._channel.fileno())

    def _fail(self, error: OSError) -> None:
        self._on_end(f"can't write to the host: {error}")

    def _readable(self) -> None:
        try:
            messages = self._channel.receive()
        except (EOFError, OSError, ProtocolError) as error:
            self._loop.remove_reader(self._channel.fileno())
            self._on_end(str(error) or "the host has ended")
            return
        for message, fds in messages:
            if message.get("type") != "answer":
                self._on_message(message, fds)
                continue
            answered = self._asked.get(message.get("id", 0))
            if answered is None or answered.done():
                log.debug("link: an answer came too late (%s)", message.get("id"))
                close_all(fds)
            else:
                answered.set_result((message, fds))
