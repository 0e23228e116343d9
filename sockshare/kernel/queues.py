"""What waits on a shared socket, and whether anybody has taken any of it between two looks.

A look takes nothing away. Of a listener it is the length of its queue (``TCP_INFO``, or sock_diag(7) of a unix one),
and on demand which connections are in it (sock_diag(7): those that no program has); of a datagram socket the first
datagram (``MSG_PEEK``, recv(2)) and the memory that all of them take (``SO_MEMINFO``).
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import NamedTuple

from sockshare.kernel import connections, listeners

_SO_MEMINFO = 55  # asm-generic/socket.h; the first number is the memory of what was received (SK_MEMINFO_RMEM_ALLOC)
_MEMINFO = struct.Struct("9I")
_PEEKED = 256


class Waiting(NamedTuple):
    """What waits at one moment."""

    amount: int  # connections, or bytes of datagrams; 0: nothing waits
    #: Of a listener looked at *closely*, its clients: their addresses, or the inodes of their sockets; else empty.
    clients: frozenset[object] = frozenset()
    #: The first datagram and who sent it; None where there is none.
    first: object = None

    def was_taken_from(self, before: Waiting) -> bool:
        """Whether somebody has taken something since the look *before*, as far as the two tell."""
        if self.amount < before.amount or (before.first is not None and self.first != before.first):
            return True
        # A client that resets its connection is not among the clients any more, and still in the queue: if nothing
        # was taken, that is longer by those who have come.
        come = len(self.clients - before.clients)
        return bool(self.clients) and not before.clients <= self.clients and self.amount < before.amount + come


NOTHING = Waiting(0)


def look(sock: socket.socket, *, closely: bool = False) -> Waiting:
    """What waits on *sock* now: some microseconds; *closely*, of a listener, 0.2 ms and 3 us a connection of its port.

    Raises:
        OSError: The kernel does not say.
    """
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM:
        return _datagrams(sock)
    if listeners.is_tcp(sock):
        queue = listeners.queue(sock)
        if queue is None or not queue.length:
            return NOTHING
        return Waiting(queue.length, _not_accepted(sock) if closely else frozenset())
    if not is_readable(sock):
        return NOTHING
    inode = os.fstat(sock.fileno()).st_ino
    try:
        length = connections.listener_queue(sock.family, inode).length
        return Waiting(length, frozenset(connections.unix_clients(inode) if closely and length else ()))
    except LookupError:
        return NOTHING


def is_readable(sock: socket.socket) -> bool:
    """Whether something waits on *sock* now (poll(2))."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


def _not_accepted(sock: socket.socket) -> frozenset[object]:
    address, port, *_ = sock.getsockname()
    found = connections.established(sock.family, port, address)
    return frozenset(one.remote for one in found if one.inode == 0)


def _datagrams(sock: socket.socket) -> Waiting:
    try:
        data, sender = sock.recvfrom(_PEEKED, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return NOTHING
    try:
        memory = _MEMINFO.unpack_from(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[0]
    except (OSError, struct.error):
        memory = 0
    # What waits on a unix socket is charged to who sent it: then its amount is not known.
    return Waiting(max(memory, 1), first=(data, sender))
