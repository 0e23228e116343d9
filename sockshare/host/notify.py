"""The notify sockets: one ``NOTIFY_SOCKET`` a process (sd_notify(3)), held by the host.

What a process says while the broker is away waits in its socket for the next one.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable

from sockshare.kernel import closing, listeners, processes
from sockshare.kernel.peers import pidfd_open

from .loop import Loop, guarded

log = logging.getLogger(__name__)


class NotifySockets:
    """The notify sockets in *directory*, by pid; each is removed when its process is gone.

    Args:
        removed: Called with the pid of each that was removed.
    """

    def __init__(self, loop: Loop, directory: str, removed: Callable[[int], None] = lambda pid: None) -> None:
        self._loop = loop
        self._directory = directory
        self._removed = removed
        self._sockets: dict[int, tuple[socket.socket, int]] = {}

    def path(self, pid: int) -> str:
        """Where the notify socket of *pid* is, or would be."""
        return os.path.join(self._directory, str(pid))

    def restore(self) -> None:
        """Bind anew, at the same paths, what an earlier host left for processes that live; remove the rest.

        Raises:
            OSError: The directory can't be read.
        """
        for entry in os.listdir(self._directory):
            try:
                self.open(int(entry))
            except (ValueError, OSError) as error:
                log.debug("notify: removing %s: %s", entry, error)
                _unlink(os.path.join(self._directory, entry))

    def open(self, pid: int) -> socket.socket:
        """The socket of *pid*, made if need be.

        Raises:
            ProcessLookupError: No such process.
            OSError, ValueError: As `listeners.make`.
        """
        if pid not in self._sockets:
            pidfd = pidfd_open(pid)
            try:
                sock = self._make(pid)
            except BaseException:
                os.close(pidfd)
                raise
            self._sockets[pid] = (sock, pidfd)
            self._loop.add_reader(pidfd, lambda: self._gone(pid))
        return self._sockets[pid][0]

    def renew(self) -> None:
        """Bind all anew, at the same paths, after those were removed.

        Raises:
            OSError: As `listeners.make`.
        """
        for pid, (sock, pidfd) in list(self._sockets.items()):
            self._sockets[pid] = (self._make(pid), pidfd)
            closing.close(sock)

    def _make(self, pid: int) -> socket.socket:
        path = self.path(pid)
        try:
            uids = processes.uids(pid)
        except OSError:
            uids = frozenset({0})  # it is gone, and soon its socket
        if len(uids) == 1 and 0 not in uids:
            # It can't become another user, nor can what it starts: the kernel keeps all others out. A process that has
            # root's rights may drop them, whatever for; so everybody may send to its socket.
            owner = next(iter(uids))
            try:
                return listeners.make(path, socket.SOCK_DGRAM, mode=0o600, owner=owner)
            except PermissionError:
                pass  # we are not root, and it is another user's
        return listeners.make(path, socket.SOCK_DGRAM)

    @property
    def sockets(self) -> dict[int, socket.socket]:
        """All that there are, by pid."""
        return {pid: sock for pid, (sock, _) in self._sockets.items()}

    @guarded(log)
    def _gone(self, pid: int) -> None:
        self._close(pid)
        _unlink(self.path(pid))
        self._removed(pid)

    def _close(self, pid: int) -> None:
        sock, pidfd = self._sockets[pid]
        self._loop.remove_reader(pidfd)  # first: it stays readable
        del self._sockets[pid]
        os.close(pidfd)
        closing.close(sock)

    def close(self) -> None:
        """Close all, and leave their paths for the next host."""
        for pid in list(self._sockets):
            self._close(pid)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("notify: can't remove %s: %s", path, error.strerror)
