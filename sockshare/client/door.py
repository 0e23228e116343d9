"""The door, from outside: tickets against descriptors (docs/protocol.md).

One connection an exchange. The host keeps the listening descriptor, so while the broker is away a connection queues;
when the host is away too it is refused, and tried again until the deadline. All deadlines are of `time.monotonic`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import time
from collections.abc import Sequence

from sockshare.core import versions
from sockshare.core.errors import (
    BY_NAME,
    BadConfiguration,
    ExitStatus,
    NoBroker,
    NotPermitted,
    ProtocolError,
    SockshareError,
)
from sockshare.kernel.descriptors import close_all, receive, send

#: Tickets a packet may carry, and bytes in one.
MOST_TICKETS = 16
TICKET_SIZE = 16

_TIMEVAL = struct.Struct("@ll")
_LATER = frozenset(
    {errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.EINTR}
)

#: So much is read of why there is no broker.
_LONGEST_REASON = 4096


class NoDescriptor(SockshareError, OSError):
    """This process may open no more descriptors (``RLIMIT_NOFILE``); nothing was spent."""


class Unreachable(NoBroker):
    """No broker can be there, however long one waits."""


class Greeting:
    """What the broker says: pid, state ('serving' or 'refused'), mistakes, and whether it talks to our uid."""

    # A NamedTuple would take longer to make than to use: `exec` pays for each at its start.
    __slots__ = ("mistakes", "pid", "state", "uid_known")

    def __init__(self, pid: int, state: str, mistakes: tuple[str, ...], uid_known: bool) -> None:
        self.pid = pid
        self.state = state
        self.mistakes = mistakes
        self.uid_known = uid_known


_Answer = tuple[socket.socket, bytes, list[int]]


def hello(directory: str, deadline: float) -> Greeting:
    """Ask the broker who it is and in what state.

    Raises:
        NoBroker: No answer by the deadline.
        ProtocolError: What answered is no broker.
    """
    sock, data, _ = _exchange(directory, b"H", 0, 65536, deadline)
    sock.close()
    fields = _object(directory, data[1:]) if data[:1] == b"+" else {}
    mistakes = fields.get("mistakes") or []
    pid = fields.get("pid")
    if (
        not versions.are_neighbours(versions.DIALOGUE, fields.get("v"))
        or not isinstance(pid, int)
        or not isinstance(mistakes, list)
    ):
        raise ProtocolError(f"can't understand the broker at {directory}: it says {data[:60]!r}")
    return Greeting(
        pid,
        str(fields.get("state")),
        tuple(str(mistake) for mistake in mistakes),
        fields.get("uid_known") is not False,
    )


def refusal(directory: str, greeting: Greeting) -> SockshareError | None:
    """Why the broker that greeted so would never answer this process; None if it would."""
    if not greeting.uid_known:
        # ZMQ_IPC_FILTER_UID would meet us with silence.
        return NotPermitted(
            f"can't use the broker at {directory} (pid {greeting.pid}, {greeting.state}): no program of it runs under"
            f" uid {os.geteuid()}, which may not command its manager either"
        )
    if greeting.state == "refused":
        mistakes = greeting.mistakes or ("no reason given",)
        return BadConfiguration("can't use the broker: its configuration was refused: " + "\n".join(mistakes))
    return None


def redeem(directory: str, tickets: Sequence[bytes], deadline: float) -> list[tuple[str, int]]:
    """Redeem *tickets*: each socket's name and a close-on-exec descriptor, in order, which are the caller's to close.

    Raises:
        TicketRefused: One of them is unknown, used, expired or another process's; nothing was spent.
        NoDescriptor: This process may open no more descriptors; nothing was spent.
        NoBroker: No answer by the deadline.
        ProtocolError: What answered is no broker.
    """
    if any(len(ticket) != TICKET_SIZE for ticket in tickets):
        raise ProtocolError(f"can't redeem the ticket: it must have {TICKET_SIZE} bytes")
    redeemed: list[tuple[str, int]] = []
    try:
        for start in range(0, len(tickets), MOST_TICKETS):
            redeemed += _redeem(directory, tickets[start : start + MOST_TICKETS], deadline)
    except BaseException:
        close_all(fd for _, fd in redeemed)
        raise
    return redeemed


def _redeem(directory: str, tickets: Sequence[bytes], deadline: float) -> list[tuple[str, int]]:
    sock, data, fds = _exchange(directory, b"R" + b"".join(tickets), len(tickets), 16384, deadline)
    with sock:
        if data[:1] == b"-":
            close_all(fds)
            raise error_of(_object(directory, data[1:]))
        names = data[1:].decode("utf-8", "replace").split("\0")
        if data[:1] != b"+" or len(names) != len(fds) or len(fds) != len(tickets):
            close_all(fds)
            raise ProtocolError(
                f"can't redeem {len(tickets)} ticket(s) at {directory}: {len(fds)} descriptors came with {data[:60]!r}"
            )
        try:
            sock.send(b"A")
        except OSError:
            pass  # a broker that died just now: the descriptors are here, and its tickets died with it
    return list(zip(names, fds, strict=True))


def take(directory: str, name: str, deadline: float) -> int:
    """What is called *name* and needs no ticket: a close-on-exec descriptor, which is the caller's to close.

    Raises:
        TicketRefused, NotPermitted: This process can't have it.
        NoDescriptor: This process may open no more descriptors.
        NoBroker: No answer by the deadline.
        ProtocolError: What answered is no broker, or an older one.
    """
    sock, data, fds = _exchange(directory, b"S" + name.encode(), 1, 16384, deadline)
    sock.close()
    if data[:1] == b"-":
        close_all(fds)
        raise error_of(_object(directory, data[1:]))
    if data[:1] != b"+" or len(fds) != 1:
        close_all(fds)
        raise ProtocolError(f"can't take {name!r} at {directory}: {len(fds)} descriptors came with {data[:60]!r}")
    return fds[0]


def present(directory: str, key: str, gate: int, deadline: float) -> None:
    """Bring back to the broker, which has lost it, the *gate* of our claim *key*.

    Raises:
        NotPermitted: This process has no such claim.
        NoBroker: No answer by the deadline.
        ProtocolError: What answered is no broker.
    """
    while True:
        sock, data, _ = _exchange(directory, b"P" + key.encode(), 0, 16384, deadline)
        with sock:
            if data[:1] == b"+":
                try:
                    send(sock, b"F", [gate])
                    data = sock.recv(16384)
                except OSError as error:
                    if error.errno not in _LATER:
                        raise Unreachable(
                            f"can't bring a gate to the broker at {directory}: {error.strerror}"
                        ) from None
                    data = b""
        if data[:1] == b"-":
            raise error_of(_object(directory, data[1:]))
        if data == b"+":
            return
        if data:
            raise ProtocolError(f"can't understand the broker at {directory}: it says {data[:60]!r}")
        # It was killed in between, or took too long.


def accepts(directory: str) -> bool:
    """Whether something listens at the door of *directory* right now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(os.path.join(directory, "door"))
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
    return True


def read(directory: str, name: str) -> str:
    """What the host has left in the file *name* of *directory*; empty: nothing."""
    try:
        with open(os.path.join(directory, name), errors="replace") as file:
            return file.read(_LONGEST_REASON)
    except OSError:
        return ""


def error_of(answer: dict[str, object]) -> SockshareError:
    """The error that a refusal of the broker names."""
    kind = BY_NAME.get(str(answer.get("error")), SockshareError)
    error = kind(str(answer.get("message") or "can't tell what went wrong: the broker gave no reason"))
    try:
        error.exit_status = ExitStatus(answer["exit"])  # type: ignore[arg-type]
    except (KeyError, ValueError):
        pass
    return error


def _object(directory: str, data: bytes) -> dict[str, object]:
    try:
        fields = json.loads(data)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ProtocolError(f"can't understand the broker at {directory}: it says {data[:60]!r}")
    return fields


def _exchange(directory: str, packet: bytes, most: int, size: int, deadline: float) -> _Answer:
    pause, reason = 0.005, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            return _attempt(os.path.join(directory, "door"), packet, most, size, left)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # as receive() says it, too
                raise no_descriptor(error) from None
            # ENOTDIR, EACCES and their like don't go away by waiting; no errno: a path too long for AF_UNIX.
            if error.errno not in _LATER:
                raise Unreachable(f"can't reach the broker at {directory}: {error.strerror or error}") from None
            reason = "no answer" if error.errno in (errno.EAGAIN, errno.EPIPE) else error.strerror or str(error)
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * 2, 0.05)
    raise NoBroker(f"can't reach the broker at {directory}: {reason}; does its circusd or supervisord still run?")


def no_descriptor(error: OSError) -> NoDescriptor:
    """*error*, which opening a descriptor raised, as a sentence."""
    refused = NoDescriptor(
        f"can't take the descriptor: {os.strerror(error.errno or errno.EMFILE)} (RLIMIT_NOFILE); raise ulimit -n"
    )
    refused.errno = error.errno
    return refused


def _attempt(path: str, packet: bytes, most: int, size: int, left: float) -> _Answer:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Blocking, with the kernel's own time-outs (socket(7)): a non-blocking connect to a full queue fails at once
        # (unix(7)), and a program's socket.setdefaulttimeout() must not matter here.
        sock.settimeout(None)
        timeout = _TIMEVAL.pack(int(left), max(1, int(left % 1 * 1e6)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        sock.connect(path)
        sock.send(packet)
        data, fds = receive(sock, size, most)
        if not data:
            close_all(fds)
            # The broker was killed, or it saw us silent for too long.
            raise BrokenPipeError(errno.EPIPE, "the connection was closed")
    except BaseException:
        sock.close()
        raise
    return sock, data, fds
