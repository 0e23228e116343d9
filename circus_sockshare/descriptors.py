"""Sends circusd's sockets to the plugin; runs inside circusd (`circus_sockshare.inherited` receives them)."""

from __future__ import annotations

import array
import socket
from collections.abc import Collection
from typing import Any

from circus.exc import MessageError

#: So many in one message: at most 253 (``SCM_MAX_FD``), and the credentials that come along need room.
_MOST = 200


def send(arbiter: Any, names: Collection[str], path: str) -> None:
    """Send those of circusd's sockets that have *names* to the ``AF_UNIX`` datagram socket at *path*.

    Raises:
        MessageError: They can't be sent.
    """
    fds = [sock.fileno() for sock in arbiter.sockets.values() if sock.name in names and sock.fileno() >= 0]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
            channel.connect(path)
            for start in range(0, len(fds), _MOST):
                numbers = array.array("i", fds[start : start + _MOST])
                channel.sendmsg([b"sockets"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
    except OSError as error:
        raise MessageError(f"can't send sockets to {path}: {error.strerror}") from None
