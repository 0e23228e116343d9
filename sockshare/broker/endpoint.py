"""ZeroMQ: the dialogue with managed processes and commands (docs/protocol.md).

The ROUTER socket serves a listener that the host made and keeps (``ZMQ_USE_FD``, zmq_setsockopt(3)), so that clients
which connect while there is no broker wait in its queue. Who speaks is what the kernel recorded at connect
(``Peer-Address``); that routes and gives a first answer, while descriptors leave by the door only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
import zmq

from sockshare.core import versions
from sockshare.core.errors import ProtocolError, SockshareError

from .memory import end_without

log = logging.getLogger(__name__)

#: A longer message is refused by ZeroMQ itself.
LONGEST_MESSAGE = 65536
#: Messages answered before other work of the loop gets its turn.
_BATCH = 64
#: Messages of one connection that wait unread in here; what else it sends stays in the kernel, and with it.
_UNREAD = 64

# As plain numbers: pyzmq's flags are enums, whose operators would be a good part of a message's time.
_NOW, _MORE, _INPUT = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.POLLIN)
_encode = msgspec.json.Encoder().encode


class Request(msgspec.Struct, frozen=True):
    """What a client asks; which fields matter depends on *op*. What a later client says besides is passed over."""

    v: int
    id: int
    op: str
    socket: str | None = None
    pid: int | None = None
    sockets: list[str] | None = None
    warning: str | None = None
    status: str | None = None
    program: str | None = None
    programs: list[str] | None = None
    key: str | None = None
    timeout: float | None = None
    dry_run: bool = False
    gate: bool = False
    cooperate: bool = False
    epoch: int = 0
    process: str | None = None
    to: str | None = None
    have: list[int] | None = None


#: Refusals after which nothing more is read for so many seconds: who asks for what it does not get delays itself.
_REFUSALS, _AFTER_REFUSALS = 16, 0.005
#: The route of what the host asks; a peer of ZeroMQ has none that is empty.
HOST = b""


#: A request, of the bytes as which it came; what is no request raises `msgspec.MsgspecError` or UnicodeDecodeError.
read = msgspec.json.Decoder(Request).decode


class Caller(NamedTuple):
    """Where an answer goes, and who asked."""

    route: bytes
    pid: int
    uid: int
    id: int


class Endpoint:
    """The ROUTER socket, in the running loop."""

    def __init__(
        self, listener: int, path: str, uids: Iterable[int], answer: Callable[[Caller, Request, bytes], None]
    ) -> None:
        """Serve *listener*, bound at *path*, to the *uids* (none: to all); each request is given to *answer*, read
        and as it came."""
        self._loop = asyncio.get_running_loop()
        self._answer = answer
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        # Never ROUTER_HANDOVER: it lets a client take over another's answers. An answer to nobody is an error.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LONGEST_MESSAGE)
        self._socket.setsockopt(zmq.RCVHWM, _UNREAD)
        self._socket.setsockopt(zmq.BACKLOG, 4096)
        # Nobody authenticates, but with a domain ZMTP 1.0 is not spoken: most random bytes are a greeting of it, and
        # then messages, whose sender is unknown.
        self._socket.setsockopt(zmq.ZAP_DOMAIN, b"sockshare")
        for uid in uids:
            self._socket.setsockopt(zmq.IPC_FILTER_UID, uid)
        self._socket.setsockopt(zmq.USE_FD, listener)
        self._socket.bind(f"ipc://{path}")
        self._draining = False  # whether `_drain` runs, or will by itself
        self._refusals = 0
        self._events = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._events, self._readable)
        self._readable()

    def _readable(self) -> None:
        if self._draining:
            # Later, and only once at a time. The descriptor is readable until the socket is asked (zmq_getsockopt(3)).
            self._socket.getsockopt(zmq.EVENTS)
            return
        self._draining = True
        self._drain()

    def reply(self, caller: Caller, fields: dict[str, Any]) -> bool:
        """Send *fields* to *caller*; whether it is still there, and reads what it is told."""
        try:
            self._socket.send(caller.route, _MORE)
            self._socket.send(_encode({"id": caller.id, **fields}), _NOW)
        except zmq.ZMQError as error:
            end_without(error)
            log.debug("endpoint: no way to pid %d: %s", caller.pid, error)
            return False
        finally:
            # The descriptor of a ZeroMQ socket is edge-triggered, and sending, also when it fails, may take the edge of
            # what has arrived meanwhile (zmq_getsockopt(3), ZMQ_FD): look again.
            if not self._draining and int(self._socket.getsockopt(zmq.EVENTS)) & _INPUT:
                self._draining = True
                self._loop.call_soon(self._drain)
        return True

    def fail(self, caller: Caller, error: SockshareError) -> None:
        """Tell *caller* what went wrong."""
        self._refusals += 1
        self.reply(caller, {"ok": False, **described(error)})

    def _drain(self) -> None:
        for _ in range(_BATCH):
            if self._refusals >= _REFUSALS:
                self._refusals = 0
                self._loop.call_later(_AFTER_REFUSALS, self._drain)
                return
            try:
                # Frame by frame: recv_multipart would make an object of the route, and ask for options in between.
                route: bytes = self._socket.recv(_NOW)
                frame = self._socket.recv(_NOW, copy=False)
            except zmq.Again:
                self._draining = False
                return
            if not frame.more:
                self._take(route, frame)
                continue
            count = 2
            while frame.more:
                frame = self._socket.recv(_NOW, copy=False)
                count += 1
            self._refusals += 1
            log.warning("endpoint: a message of %d frames was dropped", count)
        self._loop.call_soon(self._drain)

    def _take(self, route: bytes, frame: zmq.Frame) -> None:
        try:
            # "localhost:UID:GID:PID", by SO_PEERCRED. 'User-Id' beside it can be forged: never read it.
            _, uid, _, pid = str(frame.get("Peer-Address")).split(":")
            caller = Caller(route, int(pid), int(uid), 0)
        except (zmq.ZMQError, ValueError):
            log.warning("endpoint: a message of an unknown peer was dropped")
            return
        try:
            request = read(frame.buffer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("endpoint: pid %d sent what is no request: %s", caller.pid, error)
            self.fail(caller, ProtocolError(f"can't read the request: {error}"))
            return
        caller = Caller(route, caller.pid, caller.uid, request.id)
        if not versions.are_neighbours(versions.DIALOGUE, request.v):
            known = versions.understood(versions.DIALOGUE)
            self.fail(
                caller, ProtocolError(f"can't answer: this broker speaks {known}, the client version {request.v}")
            )
            return
        try:
            self._answer(caller, request, bytes(frame.buffer))
        except Exception as error:  # a bug of ours is the caller's answer, and not the broker's end
            log.exception("endpoint: %s of pid %d failed", request.op, caller.pid)
            self.fail(caller, SockshareError(f"can't {request.op}: the broker has a bug ({error!r}; see its log)"))


def described(error: SockshareError) -> dict[str, Any]:
    """*error* in the form in which it travels."""
    return {"error": type(error).__name__, "message": str(error), "exit": int(error.exit_status)}
