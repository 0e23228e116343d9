"""`start_server`: asyncio's, on a shared socket, through the gate."""

from __future__ import annotations

import asyncio
import logging
import os
import socket as sockets_of_python
import ssl as tls
from collections.abc import Awaitable, Callable
from types import TracebackType

from sockshare.core.errors import SockshareError

from . import aio, finding
from .aio_registration import Registration

log = logging.getLogger(__name__)

Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]

#: Connections that are accepted before other work of the loop gets its turn.
_BATCH = 16
#: Seconds until accepting is tried again when this process may open no more descriptors.
_AFTER_FAILURE = 1.0
_LIMIT = 2**16  # as asyncio.start_server has it


async def start_server(
    handler: Connected,
    name: str,
    *,
    share: aio.Share | None = None,
    endpoint: str | None = None,
    timeout: float = finding.PATIENCE,
    limit: int = _LIMIT,
    ssl: tls.SSLContext | None = None,
) -> Server:
    """Serve the shared stream socket *name*: each connection is given to *handler*, as asyncio.start_server does.

    The server stands in line for the socket's registration from the moment this returns, and accepts while it has it.
    Under another policy than ``shared`` that may be later, and any number of times: a standby has nothing to do for it.

    Args:
        handler: Called with a StreamReader and a StreamWriter, in a task of its own.
        share: Whose socket; None: of a share that is made here, with *endpoint* and *timeout* as for `attach`, and
            closed with the server.
        limit, ssl: As for asyncio.start_server.

    Raises:
        NoBroker, UnknownSocket, NotPermitted, RegistrationLost: As `Share.registration`.
        SockshareError: The socket is none that connections are accepted on.
    """
    own = await aio.attach(endpoint, timeout) if share is None else None
    try:
        server = Server(handler, share or own, own, limit, ssl)  # type: ignore[arg-type]
        await server._start(name)
    except BaseException:
        if own is not None:
            await own.close()
        raise
    return server


class Server:
    """A server on a shared socket; made by `start_server`, ended by `close` or at the end of its ``async with`` block.

    Attributes:
        share: The share whose socket it serves: for ``await server.share.ready()``.
        registration: What it accepts through.
    """

    registration: Registration

    def __init__(
        self, handler: Connected, share: aio.Share, own: aio.Share | None, limit: int, ssl: tls.SSLContext | None
    ) -> None:
        self.share = share
        self._handler = handler
        self._own = own
        self._limit = limit
        self._ssl = ssl
        self._loop = asyncio.get_running_loop()
        self._handlers: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    async def _start(self, name: str) -> None:
        self._listener = listener = await self.share.socket(name)
        if listener.type != sockets_of_python.SOCK_STREAM:
            raise SockshareError(f"can't serve {name!r}: it is no stream socket; watch share.registration({name!r})")
        if os.get_blocking(listener.fileno()):
            raise SockshareError(f"can't serve {name!r}: it is configured as a blocking socket, which a loop can't use")
        self.registration = await self.share.claim(name)
        try:
            await self.registration.in_line()
        except BaseException:
            self.registration.leave()
            raise
        self._loop.add_reader(self.registration.fileno(), self._accept)

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()

    def is_serving(self) -> bool:
        """Whether it accepts whenever it holds the registration: until it is closed."""
        return self._ending is None

    async def serve_forever(self) -> None:
        """Return when the server was closed; close it when cancelled."""
        try:
            await self._closed.wait()
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise

    def close(self) -> None:
        """Accept no more, and pass the registration on. Connections stay as they are; may be called again."""
        if self._ending is not None:
            return
        # Before anything is closed: epoll keeps what others have open (epoll(7), Q6).
        self._loop.remove_reader(self.registration.fileno())
        if self._paused is not None:
            self._paused.cancel()
        self._ending = self._loop.create_task(self._end())

    async def wait_closed(self) -> None:
        """Return when, after `close`, the registration was passed on and every handler has ended."""
        await self._closed.wait()
        while self._handlers:
            await asyncio.wait(self._handlers)

    async def _end(self) -> None:
        try:
            await self.registration.release()
            if self._own is not None:
                await self._own.close()
        finally:
            self._closed.set()

    def _accept(self) -> None:
        for _ in range(_BATCH):
            if not self.registration.waiting():
                return
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                log.error("can't accept on %r: %s", self.registration.name, error.strerror)
                self._loop.remove_reader(self.registration.fileno())
                self._paused = self._loop.call_later(_AFTER_FAILURE, self._resume)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._serve(connection))
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self.registration.fileno(), self._accept)

    async def _serve(self, connection: sockets_of_python.socket) -> None:
        reader = asyncio.StreamReader(limit=self._limit, loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._ssl)
        except (OSError, tls.SSLError) as error:
            connection.close()
            log.info("can't begin a connection of %r: %s", self.registration.name, error)
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        try:
            doing = self._handler(reader, writer)
            if doing is not None:
                await doing
        except Exception:
            log.exception("the handler of %r failed", self.registration.name)
            transport.abort()
