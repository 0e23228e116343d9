"""Patches ``CircusSocket.bind_and_listen``, which says that it could not bind, and not who keeps it from that."""

from __future__ import annotations

import errno
import functools
from typing import Any

from circus import logger
from circus.sockets import CircusSocket

from sockshare.kernel import occupants


def install() -> None:
    """Have a taken address be told with who has it; repeating it changes nothing."""
    original = CircusSocket.bind_and_listen
    if getattr(original, "names", False):
        return

    @functools.wraps(original)
    def bind_and_listen(self: Any) -> Any:
        try:
            return original(self)
        except OSError as error:
            if self.is_unix or error.errno == errno.EADDRINUSE:
                _name(self)
            raise

    bind_and_listen.names = True  # type: ignore[attr-defined]
    CircusSocket.bind_and_listen = bind_and_listen


def _name(sock: Any) -> None:
    try:
        if sock.is_unix:
            found = occupants.of_path(sock.path)
        else:
            kind = "udp" if sock.type == occupants.DATAGRAM else "tcp"
            found = occupants.of_port(kind, str(sock.host), int(sock.port))
        by = occupants.describe(found)
        if by:
            logger.critical("sockshare: [socket:%s] address in use%s", sock.name, by)
    except Exception:  # what we add to a failure must not be another one
        logger.exception("sockshare: can't tell who has the address of socket %s", sock.name)
