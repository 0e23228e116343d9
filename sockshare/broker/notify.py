"""``NOTIFY_SOCKET``: what managed processes say by sd_notify(3), each on a socket of its own that the host keeps."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable

from sockshare.core.sdnotify import Notification, parse
from sockshare.kernel.descriptors import close_all

log = logging.getLogger(__name__)

_UCRED = struct.Struct("3i")
_INT = struct.calcsize("i")
_LONGEST = 4096
_DESCRIPTORS = 16


class NotifySocket:
    """One process's notify socket, *fd*, which becomes this object's; made in the running loop.

    The host has had it record its senders' credentials since it was made (`kernel.listeners.make`).

    Args:
        heard: Given the sender's pid and what it said. It is called before the datagram is taken from the socket, so
            that what a broker heard and did not live to act upon is heard by the next one.
    """

    def __init__(self, fd: int, heard: Callable[[int, Notification], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard = heard
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._readable)

    def close(self) -> None:
        """Stop listening; the host's socket stays."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _readable(self) -> None:
        while True:
            try:
                data, pid = self._read(socket.MSG_PEEK)
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("notify: can't receive: %s", error)
                return
            self._heard(pid, parse(data))
            # Descriptors that came (FDSTORE=1, BARRIER=1) are closed at once, which is what a barrier waits for.
            self._read(0)

    def _read(self, flags: int) -> tuple[bytes, int]:
        room = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(_DESCRIPTORS * _INT)
        data, ancillary, _, _ = self._socket.recvmsg(_LONGEST, room, flags | socket.MSG_CMSG_CLOEXEC)
        pid = 0
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid = _UCRED.unpack(payload[: _UCRED.size])[0]
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                count = len(payload) // _INT
                close_all(struct.unpack(f"{count}i", payload[: count * _INT]))
        return data, pid
