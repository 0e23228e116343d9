"""The plugin's descriptors of circusd's sockets: those that it has inherited, and those that came later.

circusd sends the later ones to a socket in the runtime directory to which only its user and root may write
(`circus_sockshare.descriptors`). A socket is recognized by its inode: its number is circusd's, and its name may be
another socket's after a ``reloadconfig``.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sockshare.kernel import listeners
from sockshare.kernel.descriptors import MOST, Truncated, close_all, receive
from sockshare.kernel.directory import Directory

from .circusd import Circusd, Refusal

log = logging.getLogger(__name__)

#: What the socket is called to which circusd sends; while it does.
_NAME = "sockets"


class Inherited(dict[str, socket.socket]):
    """circusd's sockets, by name."""

    def __init__(self) -> None:
        super().__init__()
        self._in_vain: set[int] = set()  # the inodes of those that did not come

    def take(self, told: Iterable[Mapping[str, Any]], numbers: Collection[int]) -> None:
        """Have those of *numbers*, our descriptors, that circusd has *told* of; they become close-on-exec.

        The others are closed: one that circusd has closed by now would stay open, and nobody would accept from it.
        """
        own: dict[int, int] = {}
        for number in numbers:
            with suppress(OSError):  # no socket, or closed by now
                own.setdefault(listeners.inode(number), number)
        for one in told:
            if one["inode"] in own and not one["so_reuseport"]:
                sock = socket.socket(fileno=own.pop(one["inode"]))
                sock.set_inheritable(False)
                self[one["name"]] = sock
        ours = {sock.fileno() for sock in self.values()}
        close_all(number for number in numbers if number not in ours)

    def drop(self, told: Iterable[Mapping[str, Any]]) -> list[socket.socket]:
        """Take out those that circusd does not have any more; the caller closes them."""
        inodes = {one["name"]: one["inode"] for one in told}
        gone = [name for name, sock in self.items() if inodes.get(name) != listeners.inode(sock.fileno())]
        return [self.pop(name) for name in gone]

    def missing(self, told: Iterable[Mapping[str, Any]]) -> list[str]:
        """Those that circusd has and we don't, and that may yet come."""
        return [
            one["name"]
            for one in told
            if not one["so_reuseport"] and one["name"] not in self and one["inode"] not in self._in_vain
        ]

    def fetch(
        self, circusd: Circusd, directory: Directory, told: Sequence[Mapping[str, Any]], done: Callable[[], None]
    ) -> None:
        """Have circusd send what is `missing`, then call *done*, whether or not it came.

        Raises:
            OSError, ValueError: The socket for it can't be made.
        """
        names = self.missing(told)
        path = os.path.join(directory.path, _NAME)
        channel = listeners.make(path, socket.SOCK_DGRAM, mode=0o600, dir_fd=directory.fd)
        listeners.accept_descriptors(channel)

        def sent(_: dict[str, Any]) -> None:
            numbers, whole = _receive(channel)
            self.take(told, numbers)
            end(again=not whole)

        def refused(refusal: Refusal) -> None:
            log.error("host: can't have the sockets %s from circusd: %s", ", ".join(names), refusal.reason)
            end(again=refusal.passing)

        def end(again: bool = False) -> None:
            channel.close()
            with suppress(OSError):
                os.unlink(_NAME, dir_fd=directory.fd)
            if not again:
                self._in_vain.update(one["inode"] for one in told if one["name"] in names and one["name"] not in self)
            done()

        circusd.ask(sent, refused, op="send", names=names, to=path)


def passed_on() -> list[int]:
    """The sockets that were passed on to this process: what it opens itself is close-on-exec (PEP 446)."""
    found = []
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the one by which they are listed
            if number > 2 and os.get_inheritable(number) and stat.S_ISSOCK(os.fstat(number).st_mode):
                found.append(number)
    return found


def _receive(channel: socket.socket) -> tuple[list[int], bool]:
    """All descriptors that have arrived, and whether there was room for all that were sent."""
    numbers: list[int] = []
    whole = True
    while True:
        try:
            numbers += receive(channel, 64, MOST)[1]
        except BlockingIOError:
            return numbers, whole
        except Truncated as error:
            log.error("host: %s", error.strerror)
            whole = False
