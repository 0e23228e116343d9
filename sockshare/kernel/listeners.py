"""Sockets that others come to: our own in the runtime directory, and the shared ones before they are handed out."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import stat
import struct
from typing import NamedTuple

from .descriptors import SO_PASSRIGHTS

#: The longest path an ``AF_UNIX`` address holds: 108 bytes with the terminating NUL (unix(7)).
LONGEST_PATH = 107

#: The backlog of our own listeners, for a storm of 1,000 first connects (the kernel caps it at net.core.somaxconn).
BACKLOG = 4096

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the socket module does not name it
_IPPROTO_MPTCP = 262
_SCHEMES: dict[tuple[bool, int], str] = {
    (True, socket.SOCK_STREAM): "tcp",
    (True, socket.SOCK_DGRAM): "udp",
    (False, socket.SOCK_STREAM): "unix",
    (False, socket.SOCK_DGRAM): "unixgram",
    (False, socket.SOCK_SEQPACKET): "unixseqpacket",
}
_TCP_INFO_QUEUE = struct.Struct("24xII")  # tcpi_unacked, tcpi_sacked (linux/tcp.h)

# A classic BPF program (linux/filter.h: code, where to go if true, if false, operand) that drops a datagram of 9 or 10
# bytes that begins with BARRIER=1, and lets all else pass.
_LOAD_LENGTH, _LOAD_WORD, _LOAD_BYTE = 0x80, 0x20, 0x30
_IF_EQUAL, _IF_GREATER, _IF_AT_LEAST, _RETURN = 0x15, 0x25, 0x35, 0x06
_NO_BARRIER = b"".join(
    struct.pack("=HBBI", *step)
    for step in (
        (_LOAD_LENGTH, 0, 0, 0),
        (_IF_AT_LEAST, 0, 8, 9),
        (_IF_GREATER, 7, 0, 10),
        (_LOAD_WORD, 0, 0, 0),
        (_IF_EQUAL, 0, 5, int.from_bytes(b"BARR", "big")),
        (_LOAD_WORD, 0, 0, 4),
        (_IF_EQUAL, 0, 3, int.from_bytes(b"IER=", "big")),
        (_LOAD_BYTE, 0, 0, 8),
        (_IF_EQUAL, 0, 1, ord("1")),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, 0xFFFFFFFF),
    )
)


class Queue(NamedTuple):
    """The connections that wait on a listener."""

    length: int
    backlog: int


def make(
    path: str, kind: int, *, mode: int = 0o666, owner: int | None = None, dir_fd: int | None = None
) -> socket.socket:
    """A non-blocking, close-on-exec ``AF_UNIX`` socket at *path*, which listens unless *kind* is ``SOCK_DGRAM``.

    It is made through a descriptor of its directory: *dir_fd*, or one that is opened here. So the kernel shows it under
    ``/proc/self/fd``, in ``ss -x``; whoever connects uses the path as ever.

    Whatever was at *path* is replaced in one step: a client that comes meanwhile meets the old socket or the new one,
    never none. Nobody ever meets it with other permissions than *mode*, whatever the umask is.

    A datagram socket records each sender's credentials from its first moment (``SO_PASSCRED``), and answers barriers
    (sd_notify_barrier(3)) in the kernel. Nobody can send it, or a client of a listener, descriptors, where the kernel
    can refuse them (``SO_PASSRIGHTS``, Linux 6.16).

    Raises:
        ValueError: *path* is too long for an address.
        OSError: As bind(2), rename(2).
    """
    size = len(os.fsencode(path))
    if size > LONGEST_PATH:
        raise ValueError(f"can't make socket {path}: its path has more than {LONGEST_PATH} bytes ({size})")
    directory, name = os.path.split(path)
    if dir_fd is None:
        opened = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return make(path, kind, mode=mode, owner=owner, dir_fd=opened)
        finally:
            os.close(opened)
    aside = "~" + name[1:]
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        # The inode takes this mode, less the umask: with a chmod after bind alone anyone could connect in between.
        os.fchmod(sock.fileno(), mode)
        refuse_descriptors(sock)
        if kind == socket.SOCK_DGRAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            _drop_barriers(sock)
        try:
            os.unlink(aside, dir_fd=dir_fd)
        except FileNotFoundError:
            pass
        sock.bind(f"/proc/self/fd/{dir_fd}/{aside}")  # there is no bindat(2)
        try:
            _chmod(aside, mode, dir_fd)  # what the umask took away; nobody knows the name yet
            if owner is not None:
                os.chown(aside, owner, -1, dir_fd=dir_fd, follow_symlinks=False)
            if kind != socket.SOCK_DGRAM:
                sock.listen(BACKLOG)
            os.rename(aside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except BaseException:
            os.unlink(aside, dir_fd=dir_fd)
            raise
    except BaseException:
        sock.close()
        raise
    return sock


def _chmod(name: str, mode: int, dir_fd: int) -> None:
    # chmod(2) would follow a link, and fchmod(2) takes no O_PATH descriptor, of which a socket has no other (open(2)).
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _drop_barriers(sock: socket.socket) -> None:
    """Have the kernel drop each ``BARRIER=1`` as it is sent.

    A barrier waits until the descriptor that it carries is closed (sd_notify_barrier(3)). A filter is asked before
    ``SO_PASSRIGHTS`` is, in the sender's own call, which then succeeds and closes the descriptor (unix_dgram_sendmsg):
    systemd-notify(1) waits for nobody, and no descriptor arrives. What it said before is in the queue already.
    """
    program = array.array("B", _NO_BARRIER)
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, program.buffer_info()[0])
        )
    except OSError:
        pass  # no such filters here: then a barrier is one of the datagrams that carry a descriptor


def refuse_descriptors(sock: socket.socket) -> bool:
    """Refuse descriptors from the peers of *sock* and of what it accepts; False where the kernel can't."""
    return _pass_rights(sock, False)


def accept_descriptors(sock: socket.socket) -> None:
    """Take descriptors from the peer of *sock* again, as every socket does where the kernel can't refuse them."""
    _pass_rights(sock, True)


def _pass_rights(sock: socket.socket, wanted: bool) -> bool:
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, wanted)
    except OSError:
        return False
    return True


def address(sock: socket.socket) -> str:
    """Where *sock* is bound: ``tcp://127.0.0.1:8000``, ``udp://[::1]:53``, ``unix:///path``, ``unixgram://``, ``unixseqpacket://``.

    A name in the abstract namespace is written with an @ (unix(7)); any other family by its number.
    """
    bound = sock.getsockname()
    internet = sock.family in (socket.AF_INET, socket.AF_INET6)
    if not internet and sock.family != socket.AF_UNIX:
        return f"family{int(sock.family)}:{bound}"
    kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    scheme = _SCHEMES.get((internet, kind), f"type{kind}")
    if internet:
        host = f"[{bound[0]}]" if sock.family == socket.AF_INET6 else bound[0]
        return f"{scheme}://{host}:{bound[1]}"
    if isinstance(bound, bytes):
        bound = "@" + os.fsdecode(bound[1:])
    return f"{scheme}://{bound}"


def prepare(sock: socket.socket, *, blocking: bool = False) -> None:
    """Make *sock*, which is to be shared, fit for every program: the flags and options are those of all its duplicates.

    It is non-blocking, unless *blocking*: of several processes that are woken for one connection, all but one would
    otherwise sleep in accept(2). What a TCP listener accepts has ``TCP_NODELAY`` (it inherits the listener's): a server
    that opens the descriptor as ``AF_UNIX``, as uvicorn's --fd does, never sets it, and each keep-alive request then
    takes 44 ms (Nagle's algorithm against the delayed acknowledgement).

    Raises:
        OSError: As fcntl(2), setsockopt(2).
    """
    os.set_blocking(sock.fileno(), blocking)
    if is_tcp(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def is_tcp(sock: socket.socket) -> bool:
    """Whether *sock* speaks TCP (or its multipath form)."""
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_PROTOCOL
    ) in (socket.IPPROTO_TCP, _IPPROTO_MPTCP)


def is_blocking(fd: int) -> bool:
    """Whether ``O_NONBLOCK`` is off; unlike `socket.socket.gettimeout`, the truth of all duplicates."""
    return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


def is_listening(sock: socket.socket) -> bool:
    """Whether *sock* accepts connections (``SO_ACCEPTCONN``): False also after any holder's shutdown(2)."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def reuseport(sock: socket.socket) -> bool:
    """Whether *sock* is one of several bound to one port, each with its own queue (``SO_REUSEPORT``)."""
    return sock.family != socket.AF_UNIX and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def inode(fd: int) -> int:
    """The inode of the socket *fd*: all duplicates have it, no other socket of this network namespace's life does.

    Raises:
        OSError: *fd* is not open, or (``ENOTSOCK``) no socket.
    """
    status = os.fstat(fd)
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), str(fd))
    return status.st_ino


def queue(sock: socket.socket) -> Queue | None:
    """How many connections wait on a TCP listener, and how many may; None for any other socket.

    Of a listener, ``tcpi_unacked`` of ``TCP_INFO`` (tcp(7)) is the length of its queue, ``tcpi_sacked`` its limit.
    """
    if not is_tcp(sock) or not is_listening(sock):
        return None
    return Queue(*_TCP_INFO_QUEUE.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_QUEUE.size)))
