"""The connections and the queue of a listener, by netlink (sock_diag(7)); needs no right and duplicates no descriptor.

All calls speak of the caller's own network namespace. They raise OSError when the kernel refuses the question
(no CONFIG_INET_DIAG, a seccomp filter): there is no second source.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from sockshare.kernel import processes
from sockshare.kernel.listeners import Queue

ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING = range(
    1, 12
)

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_INET_DIAG_INFO, _INET_DIAG_SHUTDOWN = 2, 8
_UDIAG_SHOW_VFS, _UDIAG_SHOW_ICONS, _UDIAG_SHOW_RQLEN = 0x02, 0x08, 0x10
_UNIX_DIAG_VFS, _UNIX_DIAG_ICONS, _UNIX_DIAG_RQLEN, _UNIX_DIAG_SHUTDOWN = 1, 3, 4, 6
_ANY_STATE = 0xFFFFFFFF
_NO_COOKIE = 0xFFFFFFFF
#: SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY (linux/sock_diag.h).
_TCP_DESTROY = 1 << 0 | 1 << 2
_PORT_AT, _SOURCE_AT = 4, 8  # in struct inet_diag_msg
#: struct sock_filter (linux/filter.h), some instructions of it, and how many ports one jump reaches over.
_FILTER = struct.Struct("=HBBI")
_LOAD_HALF, _JUMP_IF_EQUAL, _RETURN = 0x28, 0x15, 0x06
_SO_ATTACH_FILTER = 26
#: setsockopt(2)'s SO_RCVBUFFORCE, and bytes for what waits to be read: some 1,300 are counted for each connection, and
#: a process that dies ends thousands at once.
_SO_RCVBUFFORCE = 33
_WAITING = 1 << 25
_MOST_PORTS = 250

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_REQUEST = struct.Struct("=BBBxIHH16x16xIII")  # struct inet_diag_req_v2 without addresses
_REQUEST_PORTS = struct.Struct("!HH")
_REQUEST_ONE = struct.Struct("=BBBxI4s16s16sIQ")  # with them
_MESSAGE = struct.Struct("=BBBB4s16s16sIQIIIII")  # struct inet_diag_msg
_UNIX_REQUEST = struct.Struct("=BBxxIIIII")  # struct unix_diag_req
_UNIX_MESSAGE = struct.Struct("=BBBxIII")  # struct unix_diag_msg
_QUEUE = struct.Struct("=II")
# struct tcp_info (linux/tcp.h): the fields of `TcpInfo` at their places; Linux has had all of them since 4.19.
_TCP_INFO = struct.Struct("=16xI4xI16xIIII60xQQIII4xII40xQ")


class TcpInfo(NamedTuple):
    """What TCP_INFO says of a connection (tcp(7)). Ages are milliseconds, counted in clock ticks (4 ms at HZ=250)."""

    smss: int  # bytes of a full segment that we send
    unacked: int  # segments that were sent and are not acknowledged
    last_data_sent: int  # age
    last_ack_sent: int  # the kernel does not keep it: always 0
    last_data_received: int  # age
    last_ack_received: int  # age
    bytes_acked: int
    bytes_received: int
    segs_out: int
    segs_in: int
    notsent: int  # bytes that were written and have not been sent
    data_segs_in: int
    data_segs_out: int
    bytes_sent: int


class Connection(NamedTuple):
    """One TCP connection on this host's side."""

    local: tuple[str, int]
    remote: tuple[str, int]
    state: int  # ESTABLISHED, CLOSE_WAIT, ...
    inode: int  # 0: no program has accepted it yet, or none has it any more
    receive_queue: int  # bytes that the program has not read
    send_queue: int  # bytes that the other side has not acknowledged
    counters: bytes  # struct tcp_info
    cookie: int = 0  # its number for ever: no other connection of this host has had it since boot, or will

    @property
    def info(self) -> TcpInfo | None:
        """What `counters` say; None: the kernel has forgotten, as of one in TIME_WAIT or FIN_WAIT2. (Of thousands they
        are kept unread: each object more makes a pause of Python's garbage collector longer.)"""
        if len(self.counters) < _TCP_INFO.size:
            return None
        unpacked: tuple[int, ...] = _TCP_INFO.unpack_from(self.counters)
        return TcpInfo(*unpacked)


def established(
    family: int,
    port: int,
    address: str | None = None,
    *,
    states: Collection[int] = (ESTABLISHED, CLOSE_WAIT),
) -> list[Connection]:
    """The connections on local *port*: those that a listener of that *family* has accepted, or will.

    An ``AF_INET6`` listener's IPv4 clients are among the ``AF_INET6`` ones, with mapped addresses. Costs some 0.2 ms
    and 3 us a connection.

    Args:
        family: ``AF_INET`` or ``AF_INET6``, as the listener's.
        address: Only those that came to this local address; None, or a wildcard, means any.
        states: Only those in one of these states. CLOSE_WAIT: the client has shut its side and may wait for an answer.

    Raises:
        OSError: The kernel does not answer.
    """
    wanted = None if address is None else socket.inet_pton(family, address)
    if wanted is not None and not any(wanted):
        wanted = None
    found = []
    for source, connection in _dump(family, port, states):
        if wanted is None or source == wanted:
            found.append(connection)
    return found


def listener_queue(family: int, inode: int, port: int = 0) -> Queue:
    """How many connections wait on the listener *inode*, and how many may. (`listeners.queue` is cheaper for a TCP
    socket that one has; this needs none, and knows ``AF_UNIX`` too.)

    Args:
        port: The listener's; narrows the search, not needed.

    Raises:
        LookupError: No such listener in this network namespace.
        OSError: The kernel does not answer.
    """
    if family == socket.AF_UNIX:
        return _unix_queue(inode)
    for _, listener in _dump(family, port, (LISTEN,)):
        if listener.inode == inode:
            return Queue(listener.receive_queue, listener.send_queue)
    raise _unknown(inode)


def connections_of(pids: Iterable[int], connections: Iterable[Connection]) -> dict[int, list[Connection]]:
    """Which of *connections* each of *pids* has open; one that several share is listed with each of them.

    A process that is gone has none.

    Raises:
        PermissionError: A process may not be looked into.
    """
    by_inode = {connection.inode: connection for connection in connections}
    owned: dict[int, list[Connection]] = {}
    for pid in pids:
        owned[pid] = []
        try:
            inodes = processes.socket_descriptors(pid)
        except ProcessLookupError:
            continue
        except PermissionError:
            if processes.alive(pid):  # a zombie's directory is root's, and empty
                raise
            continue
        owned[pid] = [by_inode[inode] for inode in inodes if inode in by_inode]
    return owned


def _dump(family: int, port: int, states: Collection[int]) -> Iterator[tuple[bytes, Connection]]:
    """Each socket of *family* on local *port* in one of *states*, with its local address as the kernel writes it."""
    mask = sum(1 << state for state in set(states))
    request = bytearray(
        _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), mask, 0, 0, 0, _NO_COOKIE, _NO_COOKIE)
    )
    _REQUEST_PORTS.pack_into(request, 8, port, 0)
    size = 4 if family == socket.AF_INET else 16
    for body in _ask(bytes(request), _NLM_F_DUMP):
        yield body[_SOURCE_AT : _SOURCE_AT + size], _connection(body)


def _connection(body: bytes) -> Connection:
    """What one message of the kernel's says."""
    fields = _MESSAGE.unpack_from(body)
    family, state, _, _, ports, source, destination, _, cookie, _, receive_queue, send_queue, _, inode = fields
    size = 4 if family == socket.AF_INET else 16
    local_port, remote_port = _REQUEST_PORTS.unpack(ports)
    return Connection(
        (socket.inet_ntop(family, source[:size]), local_port),
        (socket.inet_ntop(family, destination[:size]), remote_port),
        state,
        inode,
        receive_queue,
        send_queue,
        _attribute(body, _MESSAGE.size, _INET_DIAG_INFO),
        cookie,
    )


def find(family: int, connection: Connection) -> Connection | None:
    """*connection*, of a listener of that *family*, as the kernel has it now: also after its program has closed it, as
    long as one of the two sides has something to say, and for a minute where this side has closed first (TIME_WAIT).

    Raises:
        OSError: The kernel does not answer.
    """
    ports = _REQUEST_PORTS.pack(connection.local[1], connection.remote[1])
    ends = [socket.inet_pton(family, end[0]).ljust(16, b"\0") for end in (connection.local, connection.remote)]
    mask = 1 << (_INET_DIAG_INFO - 1)
    request = _REQUEST_ONE.pack(family, socket.IPPROTO_TCP, mask, _ANY_STATE, ports, *ends, 0, connection.cookie)
    try:
        for body in _ask(request, 0):
            return _connection(body)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):  # gone, or another one has these ends
            raise
    return None


class Ends:
    """The last word of the kernel on each TCP connection on one of *ports*, as it forgets what it has counted.

    Raises:
        PermissionError: It takes CAP_NET_ADMIN in this network namespace.
        OSError: The kernel does not tell.
    """

    def __init__(self, ports: Collection[int]) -> None:
        self._kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        try:
            self._kernel.setblocking(False)
            if len(ports) <= _MOST_PORTS:
                _let_through(self._kernel, ports)
            _make_room(self._kernel)
            self._kernel.bind((0, _TCP_DESTROY))
        except BaseException:
            self._kernel.close()
            raise

    def read(self) -> list[Connection]:
        """Those that were told since; their `state` is CLOSE.

        Raises:
            OSError: ENOBUFS: more than could wait here; some are lost.
        """
        found: list[Connection] = []
        while True:
            try:
                packet = self._kernel.recv(1 << 16)
            except BlockingIOError:
                return found
            if len(packet) >= _HEADER.size + _MESSAGE.size:
                found.append(_connection(packet[_HEADER.size :]))

    def close(self) -> None:
        """Hear of no more."""
        self._kernel.close()


def _let_through(sock: socket.socket, ports: Collection[int]) -> None:
    """Have the kernel queue on *sock* nothing but messages on connections on one of our *ports* (socket(7),
    SO_ATTACH_FILTER): each connection of the host ends in one."""
    program = [_FILTER.pack(_LOAD_HALF, 0, 0, _HEADER.size + _PORT_AT)]
    for number, port in enumerate(ports):
        program.append(_FILTER.pack(_JUMP_IF_EQUAL, len(ports) - number, 0, port))
    program += [_FILTER.pack(_RETURN, 0, 0, 0), _FILTER.pack(_RETURN, 0, 0, 0xFFFFFFFF)]
    code = ctypes.create_string_buffer(b"".join(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))


def _make_room(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _WAITING)
    except PermissionError:  # it takes CAP_NET_ADMIN in the first user namespace: as much as net.core.rmem_max then
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WAITING)


def unix_clients(inode: int) -> list[int]:
    """The inodes of the clients' sockets whose connections wait on the ``AF_UNIX`` listener *inode*; 0 of one that has
    been closed.

    Raises:
        LookupError, OSError: As `listener_queue`.
    """
    clients = _unix_attribute(inode, _UDIAG_SHOW_ICONS, _UNIX_DIAG_ICONS)
    return list(struct.unpack(f"={len(clients) // 4}I", clients))


def unix_file(inode: int) -> int:
    """The inode, in its file system and of its last 32 bits, of the file that the ``AF_UNIX`` socket *inode* was bound
    at; 0 if that is none (an abstract name). It stays the same when the file is renamed or removed.

    Raises:
        LookupError, OSError: As `listener_queue`.
    """
    return _file_of(_unix_socket(inode))


def unix_device(inode: int) -> int:
    """The device of the file system that `unix_file` is of, as the kernel has it; 0 if that is none. stat(2) may say
    another one of the same file (overlayfs, btrfs).

    Raises:
        LookupError, OSError: As `listener_queue`.
    """
    found = _attribute(_unix_socket(inode), _UNIX_MESSAGE.size, _UNIX_DIAG_VFS)
    device = int.from_bytes(found[4:8], sys.byteorder)
    return os.makedev(device >> 20, device & 0xFFFFF)  # MAJOR, MINOR of linux/kdev_t.h


def unix_sockets_at(file: int) -> list[int]:
    """The inodes of the ``AF_UNIX`` sockets that are bound at *file*, as `unix_file` has it: all of the machine's are
    gone through.

    Raises:
        OSError: The kernel does not answer.
    """
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, _ANY_STATE, 0, _UDIAG_SHOW_VFS, _NO_COOKIE, _NO_COOKIE)
    return [_UNIX_MESSAGE.unpack_from(body)[3] for body in _ask(request, _NLM_F_DUMP) if _file_of(body) == file]


def _unix_socket(inode: int) -> bytes:
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, _ANY_STATE, inode, _UDIAG_SHOW_VFS, _NO_COOKIE, _NO_COOKIE)
    try:
        for body in _ask(request, 0):
            return body
    except FileNotFoundError:
        pass
    raise _unknown(inode)


def _file_of(body: bytes) -> int:
    found = _attribute(body, _UNIX_MESSAGE.size, _UNIX_DIAG_VFS)
    return int.from_bytes(found[:4], sys.byteorder)


def datagram_shutdown(family: int, inode: int, port: int = 0) -> int:
    """What of the datagram socket *inode*, on local *port*, was shut down: 1 reading, 2 writing, 3 both.

    Raises:
        LookupError, OSError: As `listener_queue`.
    """
    if family == socket.AF_UNIX:
        return _attribute(_unix_socket(inode), _UNIX_MESSAGE.size, _UNIX_DIAG_SHUTDOWN)[0]
    request = bytearray(_REQUEST.pack(family, socket.IPPROTO_UDP, 0, _ANY_STATE, 0, 0, 0, _NO_COOKIE, _NO_COOKIE))
    _REQUEST_PORTS.pack_into(request, 8, port, 0)
    for body in _ask(bytes(request), _NLM_F_DUMP):
        if _MESSAGE.unpack_from(body)[-1] == inode:
            return int.from_bytes(_attribute(body, _MESSAGE.size, _INET_DIAG_SHUTDOWN)[:1], sys.byteorder)
    raise _unknown(inode)


def _unix_queue(inode: int) -> Queue:
    return Queue(*_QUEUE.unpack_from(_unix_attribute(inode, _UDIAG_SHOW_RQLEN, _UNIX_DIAG_RQLEN)))


def _unix_attribute(inode: int, show: int, wanted: int) -> bytes:
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 1 << LISTEN, inode, show, _NO_COOKIE, _NO_COOKIE)
    try:
        for body in _ask(request, 0):
            # It answers by inode whatever the state; only a listener has a queue of connections.
            if _UNIX_MESSAGE.unpack_from(body)[2] == LISTEN:
                return _attribute(body, _UNIX_MESSAGE.size, wanted)
    except FileNotFoundError:
        pass
    raise _unknown(inode)


def _unknown(inode: int) -> LookupError:
    return LookupError(f"can't read the queue of socket {inode}: no such listener in this network namespace")


def _attribute(body: bytes, start: int, wanted: int) -> bytes:
    while start + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, start)
        if length < _ATTRIBUTE.size:
            break
        if kind == wanted:
            return body[start + _ATTRIBUTE.size : start + length]
        start += (length + 3) & ~3
    return b""


def _ask(request: bytes, flags: int) -> Iterator[bytes]:
    """The answers to one question to the kernel (netlink(7)): many and an end with NLM_F_DUMP, else one."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
        # It has answered when a call returns (a dump goes on in each recv), so there is nothing to wait for.
        kernel.setblocking(False)
        header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 1, 0)
        kernel.sendto(header + request, (0, 0))
        while True:
            packet = kernel.recv(1 << 18)
            start = 0
            while start + _HEADER.size <= len(packet):
                length, kind, *_ = _HEADER.unpack_from(packet, start)
                body = packet[start + _HEADER.size : start + length]
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    (number,) = struct.unpack_from("=i", body) if len(body) >= 4 else (0,)
                    if number:
                        raise OSError(-number, f"can't list sockets: {os.strerror(-number)} (sock_diag)")
                    return
                if kind == _SOCK_DIAG_BY_FAMILY:
                    yield body
                    if not flags & _NLM_F_DUMP:
                        return
                start += max((length + 3) & ~3, _HEADER.size)
            if not packet:
                raise OSError(errno.EPIPE, "can't list sockets: the kernel's answer ended early (sock_diag)")
