"""asyncio streams that move: a reader and a writer taken apart here, and put together where the connection goes."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import NamedTuple, cast

from sockshare.core.errors import SockshareError

from .giving import TLS

_LIMIT = 2**16  # asyncio's own default for a reader


class Parts(NamedTuple):
    """What a pair of streams consists of: what to hand over, and what must go along in its state."""

    connection: socket.socket
    unread: bytes  # received by this process, and not read from the reader


async def take_apart(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Parts:
    """Take the pair apart; what was written has left for the kernel. Neither of the two may be used any more.

    Raises:
        TypeError: It is a TLS connection, or none of sockets.
        RuntimeError: A task of this process waits for the reader; cancel it first.
        SockshareError: The connection is closed, or being closed.
        OSError: It was lost while what was written was sent, or this process may open no more descriptors.
    """
    transport = cast(asyncio.Transport, writer.transport)  # uvloop's is one only in what it does
    if transport.get_extra_info("ssl_object") is not None:
        raise TypeError(TLS)
    sock = transport.get_extra_info("socket")
    if sock is None or not hasattr(transport, "pause_reading"):
        raise TypeError("can't take the streams apart: there is no socket under them")
    if reader._waiter is not None:  # type: ignore[attr-defined]
        raise RuntimeError("can't take the streams apart: a task waits for the reader; cancel it first")
    if transport.is_closing():
        raise SockshareError("can't take the streams apart: the connection is closed, or being closed")
    transport.pause_reading()
    limits = transport.get_write_buffer_limits()
    # drain() returns at the low-water mark, and what is below it would be lost with the transport.
    transport.set_write_buffer_limits(high=0)
    try:
        await writer.drain()
    except BaseException:
        if not transport.is_closing():
            transport.set_write_buffer_limits(limits[1], limits[0])
            transport.resume_reading()
        raise
    connection = socket.socket(int(sock.family), int(sock.type), sock.proto, os.dup(sock.fileno()))
    connection.setblocking(False)
    unread = bytes(reader._buffer)  # type: ignore[attr-defined]
    # The transport closes its descriptor, not the connection, of which the duplicate is left: nothing is sent
    # (asyncio and uvloop don't shut it down on abort()).
    transport.abort()
    try:
        await writer.wait_closed()
    except OSError:
        pass
    except BaseException:
        connection.close()
        raise
    return Parts(connection, unread)


async def put_together(
    connection: socket.socket, unread: bytes = b"", *, limit: int = _LIMIT
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A reader and a writer for *connection*, which becomes theirs; *unread* is read first.

    Args:
        limit: The reader's, as in `asyncio.open_connection`.

    Raises:
        OSError: As ``loop.connect_accepted_socket``.
    """
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    reader = asyncio.StreamReader(limit, loop)
    if unread:
        reader.feed_data(unread)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
