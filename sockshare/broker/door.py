"""The door: where a ticket becomes a descriptor (docs/protocol.md).

Who asks is the kernel's word, taken anew for each connection, so neither a ticket nor a connection is worth anything to
another process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from sockshare.core.errors import ProtocolError, SockshareError
from sockshare.core.tickets import SECRET_BYTES
from sockshare.kernel.descriptors import Truncated, receive, send
from sockshare.kernel.listeners import refuse_descriptors
from sockshare.kernel.peers import Peer, credentials, pidfd_of_peer

from .endpoint import described

log = logging.getLogger(__name__)

TICKETS_AT_ONCE = 16
#: Seconds that a peer may be silent.
PATIENCE = 2.0
_READ_AFTER = 0.002
_CONNECTIONS = 4096
_CONNECTIONS_OF_ONE = 32
_BATCH = 64
_FAMILY, _TYPE = int(socket.AF_UNIX), int(socket.SOCK_SEQPACKET)


class Tickets(Protocol):
    """What the door asks of the rest of the broker."""

    def redeem(self, secrets: Sequence[bytes], peer: Peer, pidfd: int | None) -> list[tuple[str, int]]:
        """The names and descriptors that *secrets* are good for; raises `SockshareError` if they are not."""

    def acknowledge(self, secrets: Sequence[bytes]) -> None:
        """The peer has its descriptors."""

    def abandon(self, secrets: Sequence[bytes]) -> None:
        """The peer left before it said that it has them."""


class _Visitor:
    __slots__ = ("deadline", "handed_out", "peer", "sock")

    def __init__(self, sock: socket.socket, peer: Peer, deadline: float) -> None:
        self.sock = sock
        self.peer = peer
        self.deadline = deadline
        self.handed_out: list[bytes] = []


class Door:
    """Serves the listening socket *listener*, a descriptor that becomes this object's, in the running loop."""

    def __init__(self, listener: int, tickets: Tickets, hello: Callable[[Peer], dict[str, object]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._tickets = tickets
        self._hello = hello
        self._visitors: dict[int, _Visitor] = {}
        self._of_pid: dict[int, int] = {}
        self._queue: deque[_Visitor] = deque()  # by deadline
        self._unread: list[_Visitor] = []
        self._sweep: asyncio.TimerHandle | None = None
        self._listener = socket.socket(fileno=listener)
        self._listener.setblocking(False)
        # Accepted sockets inherit it: nobody can send us descriptors that we never asked for, such as a socket that
        # blocks in close(2).
        if not refuse_descriptors(self._listener):
            log.debug("door: no SO_PASSRIGHTS in this kernel; descriptors that peers send are closed unseen")
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                # socket.accept() would look up family and type in enums for each: a third of its time.
                fd, _ = self._listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("door: can't accept: %s", error)
                return
            sock = socket.socket(_FAMILY, _TYPE, 0, fd)
            sock.setblocking(False)
            try:
                peer = credentials(sock)
            except OSError:
                sock.close()
                continue
            if len(self._visitors) >= _CONNECTIONS or self._of_pid.get(peer.pid, 0) >= _CONNECTIONS_OF_ONE:
                log.warning("door: pid %d has too many connections; one was closed", peer.pid)
                sock.close()
                continue
            visitor = _Visitor(sock, peer, self._loop.time() + PATIENCE)
            self._visitors[fd] = visitor
            self._of_pid[peer.pid] = self._of_pid.get(peer.pid, 0) + 1
            # Who connects speaks first, and mostly has spoken by now.
            if not self._hear(visitor):
                continue
            self._queue.append(visitor)
            if self._sweep is None:
                self._sweep = self._loop.call_at(visitor.deadline, self._expire)
            if not visitor.handed_out:
                self._loop.add_reader(fd, self._hear, visitor)
                continue
            # Its acknowledgement is on its way, and nobody waits for us to read it: all of them together, a little
            # later, cost less than a wake-up for each.
            if not self._unread:
                self._loop.call_later(_READ_AFTER, self._read_acknowledgements)
            self._unread.append(visitor)

    def _read_acknowledgements(self) -> None:
        unread, self._unread = self._unread, []
        for visitor in unread:
            if visitor.sock.fileno() >= 0 and self._hear(visitor):
                self._loop.add_reader(visitor.sock.fileno(), self._hear, visitor)

    def _hear(self, visitor: _Visitor) -> bool:
        """Take what *visitor* has sent; whether it is still here."""
        try:
            while True:
                packet, _ = receive(visitor.sock, 1 + SECRET_BYTES * TICKETS_AT_ONCE + 1)
                if not packet:
                    break
                self._take(visitor, packet)
        except BlockingIOError:
            return True
        except (ConnectionError, Truncated):
            pass
        except OSError as error:
            log.info("door: pid %d: %s", visitor.peer.pid, error)
        self._leave(visitor)
        return False

    def _take(self, visitor: _Visitor, packet: bytes) -> None:
        kind, body = packet[:1], packet[1:]
        if kind == b"H" and not body:
            send(visitor.sock, b"+" + msgspec.json.encode(self._hello(visitor.peer)))
            return
        if kind == b"A" and not body and visitor.handed_out:
            self._tickets.acknowledge(visitor.handed_out)
            visitor.handed_out = []
            return
        try:
            if kind != b"R" or not body or len(body) % SECRET_BYTES or len(body) > SECRET_BYTES * TICKETS_AT_ONCE:
                raise ProtocolError("can't read what was said at the door: no packet of this protocol")
            if visitor.handed_out:
                raise ProtocolError("can't redeem: the last descriptors were not acknowledged")
            secrets = [body[start : start + SECRET_BYTES] for start in range(0, len(body), SECRET_BYTES)]
            pidfd = pidfd_of_peer(visitor.sock)
            try:
                duplicates = self._tickets.redeem(secrets, visitor.peer, pidfd)
            finally:
                if pidfd is not None:
                    os.close(pidfd)
        except SockshareError as error:
            send(visitor.sock, b"-" + msgspec.json.encode(described(error)))
            return
        visitor.handed_out = secrets
        send(visitor.sock, b"+" + "\0".join(name for name, _ in duplicates).encode(), [fd for _, fd in duplicates])

    def _leave(self, visitor: _Visitor) -> None:
        fd = visitor.sock.fileno()
        if fd < 0:
            return
        self._loop.remove_reader(fd)
        del self._visitors[fd]
        self._of_pid[visitor.peer.pid] -= 1
        if not self._of_pid[visitor.peer.pid]:
            del self._of_pid[visitor.peer.pid]
        if visitor.handed_out:
            self._tickets.abandon(visitor.handed_out)
            visitor.handed_out = []
        visitor.sock.close()

    def _expire(self) -> None:
        now = self._loop.time()
        while self._queue and self._queue[0].deadline <= now:
            self._leave(self._queue.popleft())
        while self._queue and self._queue[0].sock.fileno() < 0:
            self._queue.popleft()
        self._sweep = self._loop.call_at(self._queue[0].deadline, self._expire) if self._queue else None
