"""The door: where a ticket becomes a descriptor (docs/protocol.md).

Who asks is the kernel's word, taken anew for each connection, so neither a ticket nor a connection is worth anything to
another process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TimeoutOfFuture
from contextlib import contextmanager, suppress
from typing import Protocol

import msgspec

from sockshare.core.errors import ProtocolError, SockshareError
from sockshare.core.tickets import SECRET_BYTES
from sockshare.kernel import closing
from sockshare.kernel.descriptors import Truncated, carries_descriptors, close_all, receive, send
from sockshare.kernel.gate import is_gate
from sockshare.kernel.listeners import accept_descriptors, refuse_descriptors
from sockshare.kernel.peers import Peer, credentials, pidfd_of_peer

from .endpoint import described

log = logging.getLogger(__name__)

TICKETS_AT_ONCE = 16
#: Seconds that a peer may be silent.
PATIENCE = 2.0
_READ_AFTER = 0.002
#: Connections at once: of all, of one user, of all users that are not admitted together, and of one process.
_CONNECTIONS, _OF_USER, _OF_STRANGERS, _OF_PROCESS = 4096, 1024, 256, 32
#: Connections, and packets of one of them, that are taken before other work of the loop gets its turn.
_BATCH, _PACKETS = 64, 16
#: Seconds for which one is not heard that has said so many at once, times those that do so meanwhile.
_REST = 0.005
#: Seconds until connections are accepted again when there was no descriptor for one; the listener stays readable.
_ACCEPT_AGAIN = 0.2
_LONGEST_PACKET = 16384
#: For a uid, of those that are not admitted.
_STRANGERS = -1
_KEY = re.compile("[0-9a-f]{32}")
_FAMILY, _TYPE = int(socket.AF_UNIX), int(socket.SOCK_SEQPACKET)


class Tickets(Protocol):
    """What the door asks of the rest of the broker."""

    def redeem(self, secrets: Sequence[bytes], peer: Peer, pidfd: int | None) -> list[tuple[str, int]]:
        """The names and descriptors that *secrets* are good for; raises `SockshareError` if they are not."""

    def acknowledge(self, secrets: Sequence[bytes]) -> None:
        """The peer has its descriptors."""

    def abandon(self, secrets: Sequence[bytes]) -> None:
        """The peer left before it said that it has them."""

    def hand_out(self, name: str, peer: Peer, pidfd: int | None) -> int:
        """The descriptor that is called *name* and needs no ticket, as it is good for nobody but the peer; raises
        `SockshareError` if there is none."""

    def may_present(self, key: str, peer: Peer, pidfd: int | None) -> None:
        """The peer wants to bring back the gate of its claim *key*; raises `SockshareError` if it may not."""

    def presented(self, key: str, fd: int) -> None:
        """It brought *fd*, an epoll, which is the callee's in any case; raises `SockshareError` if it is not taken."""


class _Visitor:
    __slots__ = ("deadline", "ended", "handed_out", "over", "peer", "presents", "rests", "sock", "user")

    def __init__(self, sock: socket.socket, peer: Peer, user: int, deadline: float) -> None:
        self.sock = sock
        self.peer = peer
        self.user = user
        self.deadline = deadline
        self.handed_out: list[bytes] = []
        self.ended = False  # nothing more will come from it
        self.over = False  # it has all that it came for
        self.rests = False  # it has said much at once, and is not heard for a while
        self.presents = False  # a gate: its socket is a thread's then, to the end


class Door:
    """Serves the listening socket *listener*, a descriptor that becomes this object's, in the running loop.

    Args:
        is_admitted: Whether processes of that uid may ask for anything.
        trouble: Called with a sentence when no connection can be accepted, and with "" when it can again.
    """

    def __init__(
        self,
        listener: int,
        tickets: Tickets,
        hello: Callable[[Peer], dict[str, object]],
        is_admitted: Callable[[int], bool] = lambda uid: True,
        trouble: Callable[[str], object] = lambda sentence: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tickets = tickets
        self._hello = hello
        self._is_admitted = is_admitted
        self._trouble = trouble
        self._visitors: set[_Visitor] = set()
        self._of_pid: Counter[int] = Counter()
        self._of_user: Counter[int] = Counter()
        self._queue: deque[_Visitor] = deque()  # by deadline
        self._unread: list[_Visitor] = []
        self._resting = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._listener = socket.socket(fileno=listener)
        self._listener.setblocking(False)
        # Accepted sockets inherit it: nobody can send us descriptors that we never asked for, such as a socket that
        # blocks in close(2).
        self._looks_first = not refuse_descriptors(self._listener)
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                # socket.accept() would look up family and type in enums for each: a third of its time.
                fd, _ = self._listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_ACCEPT_AGAIN, self._loop.add_reader, self._listener, self._accept)
                self._trouble(f"the door can't accept connections: {error.strerror}")
                return
            self._trouble("")
            sock = socket.socket(_FAMILY, _TYPE, 0, fd)
            sock.setblocking(False)
            try:
                peer = credentials(sock)
            except OSError:
                closing.close(sock)
                continue
            user = peer.uid if self._is_admitted(peer.uid) else _STRANGERS
            if (
                self._of_pid[peer.pid] >= _OF_PROCESS
                or self._of_user[user] >= (_OF_STRANGERS if user == _STRANGERS else _OF_USER)
                or len(self._visitors) >= _CONNECTIONS
            ):
                log.warning("door: pid %d (uid %d) has too many connections; one was closed", peer.pid, peer.uid)
                closing.close(sock)
                continue
            visitor = _Visitor(sock, peer, user, self._loop.time() + PATIENCE)
            self._visitors.add(visitor)
            self._of_pid[peer.pid] += 1
            self._of_user[user] += 1
            # Who connects speaks first, and mostly has spoken by now.
            if not self._hear(visitor):
                continue
            self._queue.append(visitor)
            if self._sweep is None:
                self._sweep = self._loop.call_at(visitor.deadline, self._expire)
            if not visitor.handed_out:
                self._watch(visitor)
                continue
            # Its acknowledgement is on its way, and nobody waits for us to read it: all of them together, a little
            # later, cost less than a wake-up for each.
            if not self._unread:
                self._loop.call_later(_READ_AFTER, self._read_acknowledgements)
            self._unread.append(visitor)

    def _read_acknowledgements(self) -> None:
        unread, self._unread = self._unread, []
        for visitor in unread:
            if visitor.sock.fileno() >= 0 and not visitor.presents and self._hear(visitor):
                self._watch(visitor)

    def _watch(self, visitor: _Visitor) -> None:
        if not visitor.rests and visitor.sock.fileno() >= 0:
            self._loop.add_reader(visitor.sock.fileno(), self._hear, visitor)

    def _let_rest(self, visitor: _Visitor) -> None:
        """Hear *visitor* no more for a while: the longer, the more of them there are."""
        self._resting += 1
        visitor.rests = True
        self._loop.remove_reader(visitor.sock.fileno())
        self._loop.call_later(_REST * self._resting, self._wake, visitor)

    def _wake(self, visitor: _Visitor) -> None:
        self._resting -= 1
        visitor.rests = False
        self._watch(visitor)

    def _hear(self, visitor: _Visitor) -> bool:
        """Take what *visitor* has sent; whether it is still here."""
        try:
            for _ in range(_PACKETS):
                if self._looks_first and carries_descriptors(visitor.sock):
                    break  # to receive them is to close them, and that may take long
                packet, _ = receive(visitor.sock, _LONGEST_PACKET)
                if not packet:
                    visitor.ended = True
                    break
                self._take(visitor, packet)
                if visitor.presents:
                    return False
                if visitor.over:
                    break
                if visitor.handed_out:  # whose acknowledgement is read later
                    return True
            else:
                self._let_rest(visitor)
                return True
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
            if kind == b"S" and not visitor.handed_out:
                with _process_of(visitor.sock) as pidfd:
                    fd = self._tickets.hand_out(body.decode("utf-8", "replace"), visitor.peer, pidfd)
                # What was sent is read also after we have closed (unix(7)); so it need not be waited for.
                visitor.over = True
                send(visitor.sock, b"+" + body, [fd])
                return
            if kind == b"P" and not visitor.handed_out:
                self._present(visitor, body.decode("ascii", "replace"))
                return
            if kind != b"R" or not body or len(body) % SECRET_BYTES or len(body) > SECRET_BYTES * TICKETS_AT_ONCE:
                raise ProtocolError("can't read what was said at the door: no packet of this protocol")
            if visitor.handed_out:
                raise ProtocolError("can't redeem: the last descriptors were not acknowledged")
            secrets = [body[start : start + SECRET_BYTES] for start in range(0, len(body), SECRET_BYTES)]
            with _process_of(visitor.sock) as pidfd:
                duplicates = self._tickets.redeem(secrets, visitor.peer, pidfd)
        except SockshareError as error:
            send(visitor.sock, b"-" + msgspec.json.encode(described(error)))
            return
        visitor.handed_out = secrets
        send(visitor.sock, b"+" + "\0".join(name for name, _ in duplicates).encode(), [fd for _, fd in duplicates])

    def _present(self, visitor: _Visitor, key: str) -> None:
        """Have the gate of the claim *key* received, by a thread.

        What comes may have to be closed, and closing somebody's socket takes as long as he likes (SO_LINGER,
        socket(7)). That goes for what is never received too: who closes the socket that it was sent to closes it.
        """
        if not _KEY.fullmatch(key):
            raise ProtocolError("can't take a gate: what came is no key of a claim")
        with _process_of(visitor.sock) as pidfd:
            self._tickets.may_present(key, visitor.peer, pidfd)
        self._loop.remove_reader(visitor.sock.fileno())
        visitor.presents = True
        accept_descriptors(visitor.sock)
        # Not one of an executor's: the broker would wait for it when it ends.
        threading.Thread(target=self._receive_gate, args=(visitor, key), name="sockshare-gate", daemon=True).start()

    def _receive_gate(self, visitor: _Visitor, key: str) -> None:
        # In the thread. A loop that has ended makes a RuntimeError.
        outcome: Future[None] = Future()
        with visitor.sock as sock, suppress(RuntimeError):
            try:
                sock.settimeout(PATIENCE)
                send(sock, b"+")
                self._loop.call_soon_threadsafe(self._presented, key, _gate_from(sock), outcome)
                outcome.result(PATIENCE)
                send(sock, b"+")
            except SockshareError as error:
                with suppress(OSError):
                    send(sock, b"-" + msgspec.json.encode(described(error)))
            except (OSError, TimeoutOfFuture) as error:
                log.info("door: pid %d brought no gate: %s", visitor.peer.pid, error)
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._forget, visitor)

    def _presented(self, key: str, fd: int, outcome: Future[None]) -> None:
        try:
            self._tickets.presented(key, fd)
        except SockshareError as error:
            outcome.set_exception(error)
        except Exception as error:
            log.exception("door: a gate can't be taken")
            outcome.set_exception(SockshareError(f"can't take the gate: the broker has a bug ({error!r}; see its log)"))
        else:
            outcome.set_result(None)

    def _leave(self, visitor: _Visitor) -> None:
        fd = visitor.sock.fileno()
        if fd < 0 or visitor.presents:
            return
        self._loop.remove_reader(fd)
        self._forget(visitor)
        if visitor.handed_out:
            self._tickets.abandon(visitor.handed_out)
            visitor.handed_out = []
        if visitor.ended:
            visitor.sock.close()
        else:
            closing.close(visitor.sock)  # with what it may have sent

    def _forget(self, visitor: _Visitor) -> None:
        self._visitors.discard(visitor)
        for counter, key in ((self._of_pid, visitor.peer.pid), (self._of_user, visitor.user)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]

    def _expire(self) -> None:
        now = self._loop.time()
        while self._queue and self._queue[0].deadline <= now:
            self._leave(self._queue.popleft())
        while self._queue and (self._queue[0].presents or self._queue[0].sock.fileno() < 0):
            self._queue.popleft()
        self._sweep = self._loop.call_at(self._queue[0].deadline, self._expire) if self._queue else None


@contextmanager
def _process_of(sock: socket.socket) -> Iterator[int | None]:
    pidfd = pidfd_of_peer(sock)
    try:
        yield pidfd
    finally:
        if pidfd is not None:
            os.close(pidfd)


def _gate_from(sock: socket.socket) -> int:
    """The gate that is sent next; anything else is closed."""
    try:
        packet, fds = receive(sock, 2, 1)
    except Truncated as error:
        raise ProtocolError(f"can't take a gate: {error.strerror}") from None
    if packet == b"F" and len(fds) == 1 and is_gate(fds[0]):
        return fds[0]
    close_all(fds)
    raise ProtocolError("can't take a gate: what came is not one epoll")
