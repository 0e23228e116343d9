"""A lane: packets that carry connections and their states from one process to another (docs/handover.md).

``AF_UNIX`` ``SOCK_SEQPACKET``: each packet arrives whole or not at all, in order, and what was sent is read before the
end is, also after the sender was killed (unix(7)). COMMIT and WITHDRAW must never find the lane full, or a giver could
neither give nor go on: so an offer is sent only where there is room for both after it.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sockshare.core.handover import Decline

from .descriptors import MOST, close_all

#: States of so many bytes in all travel in their packet; a longer one in a sealed memfd beside it.
INLINE = 65536
#: The longest state, bytes.
LONGEST_STATE = 16 * 1024 * 1024

OFFER, COMMIT, WITHDRAW, TAKE, DECLINE, REPORT = b"OCWTDR"
_KINDS = frozenset((OFFER, COMMIT, WITHDRAW, TAKE, DECLINE, REPORT))

_HEADER = struct.Struct("<BBHIII")  # kind, reason, count, and of a report: received, load, window
_ENTRY = struct.Struct("<QHHHBxI")  # id, family, type, protocol, whether the state is in a memfd, its length
_LARGEST = _HEADER.size + MOST * _ENTRY.size + INLINE
_ANCILLARY = socket.CMSG_LEN(MOST * 4)
# As plain numbers: the flags are enums, whose operators cost more than the system call.
_CLOEXEC, _NOSIGNAL = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_NOSIGNAL)
_TRUNC, _CTRUNC = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
#: What a packet costs of the send buffer, beside twice its bytes: struct sk_buff and its share of a slab.
_OVERHEAD = 1024
_WANTED_BUFFER = 1024 * 1024
#: What a system call says of a lane whose other end is gone, and what passes: whatever else it says, the lane lives.
_GONE = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN))
_PASSES = frozenset((errno.EAGAIN, errno.EINTR, errno.ENOMEM, errno.ENOBUFS))
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; the socket module does not name it
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class BadPacket(ValueError):
    """What came is no packet of a lane; its descriptors were closed."""


class Cargo(NamedTuple):
    """A connection that is offered."""

    id: int
    fd: int
    family: int
    type: int
    protocol: int
    state: bytes


class Arrival:
    """A connection that was offered, as it arrives: its descriptors are the holder's to close."""

    __slots__ = ("_inline", "_length", "_memfd", "family", "fd", "protocol", "type")

    def __init__(self, fd: int, family: int, type: int, protocol: int, inline: bytes, memfd: int, length: int) -> None:
        self.fd = fd
        self.family = family
        self.type = type
        self.protocol = protocol
        self._inline = inline
        self._memfd = memfd
        self._length = length

    def state(self) -> bytes:
        """What came with it; the memfd is closed, so once only.

        Raises:
            OSError: As pread(2).
        """
        if self._memfd < 0:
            return self._inline
        try:
            parts, start = [], 0
            while start < self._length:
                part = os.pread(self._memfd, self._length - start, start)
                if not part:
                    break
                parts.append(part)
                start += len(part)
            return b"".join(parts)
        finally:
            os.close(self._memfd)
            self._memfd = -1

    def drop(self) -> None:
        """Close what there is."""
        close_all(fd for fd in (self.fd, self._memfd) if fd >= 0)
        self.fd = self._memfd = -1


class Packet(NamedTuple):
    """One packet: what it says, of which connections, and what came with an offer."""

    kind: int
    ids: Sequence[int]
    arrivals: Sequence[Arrival]
    reason: int
    received: int
    load: int
    window: int


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a new lane, with as much room as this process may give them.

    Raises:
        OSError: This process may open no more descriptors.
    """
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        try:
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _WANTED_BUFFER)
        except OSError:  # without CAP_NET_ADMIN: at most net.core.wmem_max (socket(7))
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WANTED_BUFFER)
    return ends


class Lane:
    """One end of a lane, on *fd*, which becomes this object's to close."""

    def __init__(self, fd: int) -> None:
        try:
            self._buffer = memoryview(bytearray(_LARGEST + 1))
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
        except BaseException:
            os.close(fd)
            raise
        self._sock.setblocking(False)
        self._capacity = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def fileno(self) -> int:
        """The descriptor to watch; -1 once closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """End the lane: the other end reads what was sent, then the end."""
        self._sock.close()

    def unread(self) -> int:
        """What of the send buffer is taken by packets that the other end has not read yet, bytes."""
        return int.from_bytes(fcntl.ioctl(self._sock, termios.TIOCOUTQ, b"\0\0\0\0"), "little")

    def has_room(self, size: int, undecided: int) -> bool:
        """Whether an offer of *size* bytes fits, and a COMMIT and a WITHDRAW of it and of *undecided* others after it.

        The kernel takes a packet as long as what is unread is less than the buffer (sock_alloc_send_pskb).
        """
        return self.unread() + 2 * size + (2 * undecided + 3) * _OVERHEAD < self._capacity

    @property
    def roomy(self) -> bool:
        """Whether the other end has read most of what was sent: reports that nobody reads are not worth their room."""
        return self.unread() < 8 * _OVERHEAD

    def send_offer(self, cargoes: Sequence[Cargo]) -> None:
        """Offer *cargoes*: at most `MOST` descriptors, and `INLINE` bytes of states that have no memfd of their own.

        Raises:
            EOFError: The other end is gone.
            BlockingIOError: There is no room.
            OSError: As sendmsg(2), ``ETOOMANYREFS`` when this user has too many descriptors in flight; or as
                memfd_create(2). Nothing was sent, and the lane lives.
        """
        parts = [_HEADER.pack(OFFER, 0, len(cargoes), 0, 0, 0)]
        states, fds, memfds = [], array.array("i"), []
        try:
            for id, fd, family, type, protocol, state in cargoes:
                fds.append(fd)
                length = len(state)
                if length > INLINE:
                    memfds.append(_sealed(state))
                    fds.append(memfds[-1])
                else:
                    states.append(state)
                parts.append(_ENTRY.pack(id, family, type, protocol, length > INLINE, length))
            self._sock.sendmsg([b"".join([*parts, *states])], [(*_RIGHTS, fds)], _NOSIGNAL)
        except OSError as error:
            if error.errno in _GONE:
                raise EOFError from None
            raise
        finally:
            close_all(memfds)

    def send(
        self, kind: int, ids: Sequence[int] = (), reason: int = 0, received: int = 0, load: int = 0, window: int = 0
    ) -> None:
        """Say *kind* of *ids*, with a report.

        Raises:
            EOFError: The other end is gone.
            OSError: It was not said, and the lane lives: there is no room (BlockingIOError), or no memory.
        """
        head = _HEADER.pack(kind, reason, len(ids), received, load, window)
        try:
            self._sock.send(head + array.array("Q", ids).tobytes() if ids else head, _NOSIGNAL)
        except OSError as error:
            if error.errno in _GONE:
                raise EOFError from None
            raise

    def receive(self) -> Packet | None:
        """The next packet; None when none is there, or none can be had now.

        Raises:
            EOFError: The other end is gone, and everything that it said was returned before.
            BadPacket: What came is none.
            OSError: As recvmsg(2), for a reason that does not pass.
        """
        try:
            size, ancillary, flags, _ = self._receive()
        except OSError as error:
            if error.errno in _PASSES:
                return None
            if error.errno in _GONE:
                raise EOFError from None
            raise
        fds: list[int] = []
        for level, kind, payload in ancillary:
            if (level, kind) == _RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % 4])
                fds.extend(numbers)
        if not size and not fds:
            raise EOFError
        data = bytes(self._buffer[:size])
        try:
            packet = _decode(data, fds, truncated=bool(flags & _CTRUNC))
        except BaseException:
            close_all(fds)
            raise
        if flags & (_TRUNC | _CTRUNC) and packet.kind != OFFER:
            raise BadPacket("can't read the lane: a packet was cut")
        return packet

    def _receive(self) -> tuple[int, list[tuple[int, int, bytes]], int, object]:
        try:
            return self._sock.recvmsg_into([self._buffer], _ANCILLARY, _CLOEXEC)
        except ConnectionResetError:
            # The other end has closed with packets of ours unread. The kernel says so once, before what that end had
            # said, which may be a WITHDRAW: it is still there to read (unix_release_sock, sock_error).
            return self._sock.recvmsg_into([self._buffer], _ANCILLARY, _CLOEXEC)


def _decode(data: bytes, fds: list[int], *, truncated: bool) -> Packet:
    if len(data) < _HEADER.size:
        raise BadPacket(f"can't read the lane: a packet of {len(data)} bytes")
    kind, reason, count, received, load, window = _HEADER.unpack_from(data)
    if kind not in _KINDS:
        raise BadPacket(f"can't read the lane: a packet of kind {kind}")
    if kind == OFFER:
        ids, arrivals = _arrivals(data, count, fds, truncated=truncated)
        return Packet(kind, ids, arrivals, 0, 0, 0, 0)
    if fds or len(data) != _HEADER.size + 8 * count:
        raise BadPacket(f"can't read the lane: {len(data)} bytes say something of {count} connections")
    if kind == DECLINE and reason not in (one.value for one in Decline):
        raise BadPacket(f"can't read the lane: declined for reason {reason}")
    said = array.array("Q")
    said.frombytes(data[_HEADER.size :])
    return Packet(kind, said.tolist(), (), reason, received, load, window)


def _arrivals(data: bytes, count: int, fds: list[int], *, truncated: bool) -> tuple[list[int], list[Arrival]]:
    """The offered ids, and what came with them: nothing where descriptors are missing."""
    start = _HEADER.size + count * _ENTRY.size
    if len(data) < start:
        raise BadPacket(f"can't read the lane: {len(data)} bytes offer {count} connections")
    entries = list(_ENTRY.iter_unpack(data[_HEADER.size : start]))
    if truncated or len(fds) != count + sum(1 for entry in entries if entry[4]):
        close_all(fds)
        return [entry[0] for entry in entries], []
    ids, arrivals, numbers = [], [], iter(fds)
    for id, family, type, protocol, apart, length in entries:
        fd = next(numbers)
        memfd, inline = -1, b""
        if apart:
            memfd = next(numbers)
            if length > LONGEST_STATE or not _is_sealed(memfd, length):
                raise BadPacket("can't read the lane: a state is not sealed, or not as long as it says")
        else:
            inline = data[start : start + length]
            start += length
        ids.append(id)
        arrivals.append(Arrival(fd, family, type, protocol, inline, memfd, length))
    if start != len(data):
        raise BadPacket("can't read the lane: an offer has not the length that it says")
    return ids, arrivals


def _sealed(state: bytes) -> int:
    fd = os.memfd_create("sockshare-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(state)
        while view:
            view = view[os.write(fd, view) :]
        # Nobody can change it under its reader, nor cut it so that reading it ends early (fcntl(2), file sealing).
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_sealed(fd: int, length: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS and os.fstat(fd).st_size == length
    except OSError:  # no memfd
        return False


def drop_all(arrivals: Iterable[Arrival]) -> None:
    """Close what there is of *arrivals*."""
    for arrival in arrivals:
        arrival.drop()
