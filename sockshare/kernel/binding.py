"""The shared sockets that we bind ourselves, where the manager has none of its own (supervisord).

A path in the file system has a second, private name, a hard link: a server that removes "its" path when it ends leaves
that one, from which the path is published again (`publish_again`). The socket itself is bound at the public path, where
servers look for it that find what they have inherited by getsockname(2) (nginx, puma).
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from typing import NamedTuple

from . import closing
from .listeners import LONGEST_PATH

#: What `socket_backlog` is without a word; the kernel caps it at net.core.somaxconn (listen(2)).
BACKLOG = 2048
#: The permissions of a path, without a word: those of supervisord's own sockets.
MODE = 0o700

_KINDS = {
    "tcp": socket.SOCK_STREAM,
    "udp": socket.SOCK_DGRAM,
    "unix": socket.SOCK_STREAM,
    "unixgram": socket.SOCK_DGRAM,
    "unixseqpacket": socket.SOCK_SEQPACKET,
}
SCHEMES = tuple(_KINDS)
_PRIVATE = ".private"
#: Seconds that closing a socket may hold its caller up: what waits on it may be connections that linger (`closing`).
_CLOSED_WITHIN = 0.02


class Address(NamedTuple):
    """Where a socket is to be bound."""

    scheme: str
    host: str  # a numeric address; "" for a path
    port: int
    path: str  # "" for a host

    @property
    def kind(self) -> int:
        """The type of the socket (socket(2))."""
        return _KINDS[self.scheme]

    @property
    def family(self) -> socket.AddressFamily:
        """The family of the socket."""
        if self.path:
            return socket.AF_UNIX
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def listens(self) -> bool:
        """Whether connections come to it."""
        return self.kind != socket.SOCK_DGRAM

    def __str__(self) -> str:
        if self.path:
            return f"{self.scheme}://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Binding(NamedTuple):
    """Everything that decides what a socket is; two that are equal are the same socket."""

    address: Address
    owner: tuple[int, int] | None = None  # uid and gid of the path
    mode: int = MODE  # of the path
    ipv6_only: bool = False  # whether [::] leaves IPv4 to others


def parse(text: str) -> Address:
    """The address in ``tcp://127.0.0.1:8000``, ``udp://[::1]:53``, ``unix:///path``, ...

    ``*`` is every IPv4 address, ``localhost`` 127.0.0.1. Other names are refused: to look one up takes time that the
    main loop of a manager does not have.

    Raises:
        ValueError: It is none; the message says why, in words for after the text itself.
    """
    scheme, found, rest = text.partition("://")
    if not found or scheme not in _KINDS:
        raise ValueError(f"does not begin with one of {', '.join(f'{known}://' for known in _KINDS)}")
    if scheme.startswith("unix"):
        return Address(scheme, "", 0, _path(rest))
    matched = re.fullmatch(r"(?:\[([^\]]*)\]|([^\[\]:]*)):([0-9]{1,5})", rest)
    if matched is None:
        raise ValueError(f"is not of the form {scheme}://HOST:PORT, or {scheme}://[IPV6]:PORT")
    port = int(matched[3])
    if not 1 <= port <= 65535:
        raise ValueError(f"has port {port}, which is not between 1 and 65535")
    six = matched[1] is not None
    host = matched[1] if six else {"*": "0.0.0.0", "localhost": "127.0.0.1"}.get(matched[2], matched[2])
    try:
        socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, host)
    except (OSError, ValueError):
        advice = "an IPv6 address" if six else "an IPv4 address, * or localhost"
        raise ValueError(f"names {host!r}, which is not {advice}") from None
    return Address(scheme, host, port, "")


def _path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"names {path!r}, which is not an absolute path")
    if path.endswith("/") or "\0" in path:
        raise ValueError(f"names {path!r}, which can't be a file")
    size, most = len(os.fsencode(path)), LONGEST_PATH - len(_PRIVATE)
    if size > most:
        raise ValueError(f"has a path of {size} bytes, of at most {most} (unix(7))")
    return os.path.normpath(path)


def make(binding: Binding, backlog: int = BACKLOG, *, beside: bool = False) -> socket.socket:
    """A bound, non-blocking, close-on-exec socket, which listens if its kind does.

    A path that nothing answers at any more is replaced; nobody meets it with other permissions than asked.

    Args:
        beside: Whether a datagram socket that has the port, and SO_REUSEADDR, is no obstacle.

    Raises:
        OSError: As socket(2), bind(2), chown(2), link(2); ``EADDRINUSE`` also for a path with a living socket, or with
            something that is no socket.
    """
    address = binding.address
    sock = socket.socket(address.family, address.kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if address.path:
            _bind_path(sock, binding)
        else:
            if address.listens or beside:
                # What lingers of connections of an earlier life must not keep us from the port (socket(7)).
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address.family == socket.AF_INET6:
                # Said either way: the default is the machine's (net.ipv6.bindv6only).
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(binding.ipv6_only))
            sock.bind((address.host, address.port))
            if not address.listens:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        try:
            if address.listens:
                sock.listen(backlog)
        except BaseException:
            if address.path:
                _unlink_both(address.path)
            raise
    except BaseException:
        sock.close()
        raise
    return sock


def check(binding: Binding) -> None:
    """Find out whether `make` could bind it, and leave nothing behind.

    Raises:
        OSError: As `make`.
    """
    if binding.address.path:
        _check_free(binding.address)
        directory = os.path.dirname(binding.address.path)
        if not os.access(directory, os.W_OK | os.X_OK):
            reason = errno.EACCES if os.path.isdir(directory) else errno.ENOENT
            raise OSError(reason, os.strerror(reason), directory)
        return
    address = binding.address
    with socket.socket(address.family, address.kind | socket.SOCK_CLOEXEC) as sock:
        if address.listens:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(binding.ipv6_only))
        sock.bind((address.host, address.port))


def adjust(binding: Binding) -> None:
    """Give the path of a bound socket the owner and the mode that *binding* has now.

    Raises:
        OSError: As chown(2), chmod(2).
    """
    path = binding.address.path
    if path:
        _permit(private(path) if os.path.exists(private(path)) else path, binding)


def remove(sock: socket.socket, binding: Binding) -> None:
    """Close *sock* here, and remove its path if it still is this socket's."""
    path = binding.address.path
    ours = bool(path) and _is_at(path, private(path))
    closing.close(sock, _CLOSED_WITHIN)
    if path:
        _unlink(private(path))  # first: from it the path would be published again
        if ours or not _is_open(path, binding.address.kind):
            _unlink(path)


def renew(sock: socket.socket, binding: Binding, backlog: int = BACKLOG) -> socket.socket:
    """As `make`, in place of *sock*, which nobody reaches any more and which is closed here; others may have it open.

    Raises:
        OSError: As `make`; *sock* is as before.
    """
    path = binding.address.path
    if path and _is_at(path, private(path)):
        _unlink(path)
    elif not path:
        # Those who have the old one open keep its port; with this, on both, that is no obstacle to a datagram socket.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    new = make(binding, backlog, beside=True)
    closing.close(sock, _CLOSED_WITHIN)
    return new


def _is_at(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # a server has removed one of them, as it thinks it must
        return False


def private(path: str) -> str:
    """The second name of the socket that is published at *path*."""
    return path + _PRIVATE


def _bind_path(sock: socket.socket, binding: Binding) -> None:
    path = binding.address.path
    _check_free(binding.address)
    _unlink_both(path)
    # The inode takes this mode, less the umask: with a chmod after bind alone anyone could connect in between. It does
    # not listen yet either.
    os.fchmod(sock.fileno(), binding.mode & (0o700 if binding.owner is not None else 0o777))
    sock.bind(path)
    try:
        os.link(path, private(path))
        _permit(path, binding)
    except BaseException:
        _unlink_both(path)
        raise


def _permit(path: str, binding: Binding) -> None:
    if binding.owner is not None:
        os.chown(path, *binding.owner)
    os.chmod(path, binding.mode)


def _unlink_both(path: str) -> None:
    _unlink(path)
    _unlink(private(path))


def publish(path: str) -> None:
    """Have the socket whose private name is there at *path*, in one step, in place of whatever is there.

    Raises:
        OSError: As link(2), rename(2).
    """
    aside = f"{path}~"
    _unlink(aside)
    os.link(private(path), aside)
    try:
        os.rename(aside, path)
    finally:
        _unlink(aside)  # rename(2) leaves it where both were the same already


def _check_free(address: Address) -> None:
    try:
        found = os.lstat(address.path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EADDRINUSE, "there is something that is not a socket", address.path)
    if _is_open(address.path, address.kind):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), address.path)


def _is_open(path: str, kind: int) -> bool:
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            # EAGAIN: its queue is full; EPROTOTYPE: it lives, and is of another kind (unix(7)).
            return error.errno in (errno.EAGAIN, errno.EPROTOTYPE, errno.EACCES)
    return True


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
