"""Whether clients reach a shared socket, and what makes it reachable again.

Every holder of a duplicate can end that for all: by shutdown(2), by connect(2) of a datagram socket, by removing or
replacing its file. A TCP listener that was shut down is bound still, and listen(2) revives it; the kernel has no such
way for a unix or a UDP socket.
"""

from __future__ import annotations

import errno
import os
import pwd
import select
import socket
import stat
import struct
from enum import Enum
from typing import NamedTuple

from . import binding, connections, listeners, syscalls

_SO_MEMINFO = 55  # asm-generic/socket.h
_MEMINFO = struct.Struct("9I")  # linux/sock_diag.h, SK_MEMINFO_...
_RECEIVED, _RECEIVE_BUFFER, _DROPS = 0, 1, 8
_READING, _WRITING = 1, 2  # of sk_shutdown (RCV_SHUTDOWN, SEND_SHUTDOWN)
_FILE_BITS = 0xFFFFFFFF  # sock_diag has so many of an inode
#: The memory that the kernel counts for the smallest datagram: without room for one, the next is dropped.
_DATAGRAM = 768
#: What is said of a path where there is something else.
NO_SOCKET = "is no socket"


class Kind(str, Enum):
    """Why clients don't reach a socket."""

    SHUT_DOWN = "shut down"
    CONNECTED = "connected"
    GONE = "gone"
    TAKEN = "taken"


class Fault(NamedTuple):
    """One reason why clients don't reach a socket."""

    kind: Kind
    sentence: str  # for after the socket's name


class Place(NamedTuple):
    """Where the clients of an ``AF_UNIX`` socket look for it."""

    path: str
    file: int  # the inode that it has, as `connections.unix_file` says
    device: int  # `connections.unix_device`
    is_comparable: bool  # whether stat(2) has said the same of it


class Load(NamedTuple):
    """What waits on a socket, and what the kernel has dropped of it since it was made."""

    length: int | None  # connections; None: not known, or datagrams
    limit: int | None
    is_full: bool
    drops: int | None


def place(sock: socket.socket, path: str, directory: str) -> Place | None:
    """Where clients find *sock*; None unless it is bound to a file.

    Args:
        path: Where that is said to be; "": where it is bound.
        directory: What a relative path begins at.

    Raises:
        LookupError, OSError: The kernel does not say.
    """
    if sock.family != socket.AF_UNIX:
        return None
    path = path or sock.getsockname()
    if not isinstance(path, str) or not path:
        return None  # an abstract name
    path, inode = os.path.join(directory, path), listeners.inode(sock.fileno())
    file = connections.unix_file(inode)
    try:
        is_comparable = os.stat(path).st_ino & _FILE_BITS == file
    except OSError:
        is_comparable = False
    return Place(path, file, connections.unix_device(inode), is_comparable)


def look(sock: socket.socket, at: Place | None) -> Fault | None:
    """Why clients don't reach *sock*, whose `place` is *at*; None if they do, as far as is to be seen from here.

    Raises:
        LookupError, OSError: The kernel does not say.
    """
    return _shut_down(sock) or _connected(sock) or (None if at is None else _misplaced(at))


def _shut_down(sock: socket.socket) -> Fault | None:
    if _is_datagram(sock):
        unix = sock.family == socket.AF_UNIX
        port = 0 if unix else sock.getsockname()[1]
        how = connections.datagram_shutdown(sock.family, listeners.inode(sock.fileno()), port)
        # What comes by UDP is read all the same, and not answered.
        if how & (_READING | _WRITING if unix else _WRITING):
            return Fault(Kind.SHUT_DOWN, "it was shut down (shutdown(2))")
        return None
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    if any(events & (select.POLLHUP | select.POLLRDHUP) for _, events in poll.poll(0)):
        return Fault(Kind.SHUT_DOWN, "it was shut down (shutdown(2))")
    return None


def _connected(sock: socket.socket) -> Fault | None:
    if not _is_datagram(sock):
        return None
    try:
        peer = sock.getpeername()
    except OSError:
        return None
    return Fault(Kind.CONNECTED, f"it was connected to {peer!r} (connect(2)): all others are ignored")


def _misplaced(at: Place) -> Fault | None:
    try:
        found = os.stat(at.path)
    except (FileNotFoundError, NotADirectoryError):
        return Fault(Kind.GONE, f"{at.path} is gone")
    if not stat.S_ISSOCK(found.st_mode):
        return Fault(Kind.TAKEN, f"{at.path} {NO_SOCKET}")
    if found.st_ino & _FILE_BITS != at.file:
        # Before Linux 5.8, overlayfs of several file systems has other numbers in the kernel than stat(2) says: what
        # never was the same there says nothing.
        if not at.is_comparable and found.st_dev != at.device:
            raise LookupError(
                f"can't see whether {at.path} is this socket: its file system shows files by other numbers"
            )
        return Fault(Kind.TAKEN, f"{at.path} is another socket")
    return None


def closed_to(path: str) -> str:
    """Whom the permissions of *path* and of the directories on its way keep out, in words; "" if that is nobody.

    Raises:
        OSError: As stat(2).
    """
    status = os.stat(path)
    mode = stat.S_IMODE(status.st_mode)
    if not mode & 0o022:
        return f"only root and {_user(status.st_uid)} may connect to it: {path} has mode {mode:04o}"
    directory = os.path.dirname(os.path.abspath(path))
    while True:
        status = os.stat(directory)
        if mode & 0o002 and not status.st_mode & 0o001:
            permissions = f"mode {stat.S_IMODE(status.st_mode):04o}, of {_user(status.st_uid)}"
            return f"not everybody whom {path} lets in (mode {mode:04o}) gets to it: {directory} has {permissions}"
        if directory == "/":
            return ""
        directory = os.path.dirname(directory)


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def listen_again(sock: socket.socket, backlog: int) -> bool:
    """Revive *sock*, a listener that was shut down, if it can be revived; whether that is done.

    Raises:
        OSError: As listen(2).
    """
    if not listeners.is_tcp(sock) or not _is_bound(sock):
        return False
    sock.listen(backlog)
    return True


def _is_bound(sock: socket.socket) -> bool:
    """Whether *sock*, which was shut down, has its port still.

    One that the kernel chose is taken away (tcp_disconnect), and listen(2) would choose another.
    """
    with socket.socket(sock.family, sock.type) as probe:
        if sock.family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(sock.getsockname())
        except OSError as error:
            # A port below 1024, which may not be ours to try, is never the kernel's choice.
            return error.errno in (errno.EADDRINUSE, errno.EACCES)
    return False


def disconnect(sock: socket.socket) -> None:
    """Let a datagram socket hear everybody again (connect(2), ``AF_UNSPEC``).

    Raises:
        OSError: As connect(2).
    """
    result = syscalls.disconnect(sock.fileno())
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def publish_again(at: Place) -> bool:
    """Have the socket at *at* again, by its private name; whether that is done. What lives there is left alone.

    Raises:
        OSError: As stat(2), link(2), rename(2).
    """
    aside = binding.private(at.path)
    try:
        if os.lstat(aside).st_ino & _FILE_BITS != at.file:
            return False
    except FileNotFoundError:
        return False
    try:
        found = os.lstat(at.path)
    except FileNotFoundError:
        os.link(aside, at.path)  # which does not replace what came meanwhile
        return True
    if not stat.S_ISSOCK(found.st_mode) or connections.unix_sockets_at(found.st_ino & _FILE_BITS):
        return False
    binding.publish(at.path)
    return True


def sockets_at(path: str) -> list[int]:
    """The inodes of the sockets that are bound at *path*."""
    try:
        return connections.unix_sockets_at(os.stat(path).st_ino & _FILE_BITS)
    except OSError:
        return []


def keep_name(at: Place) -> None:
    """Give the file at *at*, which is the socket's, its private name, if that is not there: `publish_again` needs it.

    Raises:
        OSError: As link(2).
    """
    aside = binding.private(at.path)
    try:
        found = os.lstat(aside)
        if found.st_ino & _FILE_BITS == at.file or not stat.S_ISSOCK(found.st_mode):
            return
        os.unlink(aside)  # of an earlier life
    except FileNotFoundError:
        pass
    os.link(at.path, aside)


def forget_name(at: Place) -> None:
    """Remove the private name of the file at *at*, if it is there.

    Raises:
        OSError: As unlink(2).
    """
    aside = binding.private(at.path)
    try:
        if os.lstat(aside).st_ino & _FILE_BITS == at.file:
            os.unlink(aside)
    except FileNotFoundError:
        pass


def load(sock: socket.socket) -> Load:
    """What waits on *sock*; what is not known is None."""
    try:
        memory = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
    except (OSError, struct.error):
        memory = None
    drops = None if memory is None else memory[_DROPS]
    if _is_datagram(sock):
        full = memory is not None and memory[_RECEIVED] + _DATAGRAM > memory[_RECEIVE_BUFFER]
        return Load(None, None, full, drops)
    try:
        queue = listeners.queue(sock)
        if queue is None and sock.family == socket.AF_UNIX:
            queue = connections.listener_queue(sock.family, listeners.inode(sock.fileno()))
    except (LookupError, OSError):
        queue = None
    if queue is None:
        return Load(None, None, False, drops)
    # One more than the backlog is taken in (sk_acceptq_is_full).
    return Load(queue.length, queue.backlog, queue.length > queue.backlog, drops)


def _is_datagram(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM
