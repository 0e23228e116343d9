"""The library: `attach` to the broker, and the sockets that this process may have."""

from __future__ import annotations

import functools
import os
import socket as sockets_of_python
import threading
import time
import weakref
from types import TracebackType
from typing import TYPE_CHECKING

from sockshare.core.errors import SockshareError, TicketRefused
from sockshare.kernel.descriptors import close_all

from . import door, finding
from .dialogue import Answer, Dialogue
from .hands import Hands
from .registration import Claiming, Registrar, Registration

if TYPE_CHECKING:
    from .exchange import Exchange

# A broker that is killed takes its tickets with it: one that we asked for ourselves is asked for again this often.
_TICKETS = 3
_SO_DOMAIN = 39  # asm-generic/socket.h; the socket module does not name it


def attach(endpoint: str | None = None, timeout: float = finding.PATIENCE) -> Share:
    """Attach this process to the broker of the circusd or supervisord that started it.

    Args:
        endpoint: The broker's runtime directory; None: ``SOCKSHARE_ENDPOINT``, else the one of the manager among
            one's own ancestors, which is waited for when it is still starting (said on stderr after half a second).
        timeout: How long this, and later each method of the share, waits for the broker, seconds.

    Raises:
        NoBroker: There is none, or it did not answer in time.
        BadConfiguration: The broker refuses its configuration; the message has every mistake.
        NotPermitted: This process is not one of a program of that manager.
    """
    deadline = time.monotonic() + timeout
    found = finding.find(endpoint, timeout=timeout)
    finding.check(found)
    dialogue = Dialogue(found.directory)
    try:
        answer = dialogue.ask("attach", deadline=deadline)
    except BaseException:
        dialogue.close()
        raise
    return Share(dialogue, answer, timeout)


class Share(Hands):
    """What this process shares: made by `attach`, ended by `close` or by leaving its ``with`` block.

    All methods may be called by any thread; one waits while another asks the broker. After a fork the child may go on
    using its copy: the sockets it holds are its own duplicates by then, and the first question opens a connection of
    its own.

    The sockets are shared with other processes, and so is their every flag and option (dup(2)): don't call
    ``settimeout``, ``setblocking``, ``listen`` or ``shutdown`` on them. They are non-blocking, unless configured
    otherwise, and their Python objects know: ``accept()`` raises BlockingIOError when nothing waits, so wait with
    `selectors` or asyncio.

    Attributes:
        program: The name of the program that this process belongs to.
        process: The name of this process: ``web:1``.
    """

    def __init__(self, dialogue: Dialogue, attached: Answer, timeout: float) -> None:
        self.program = str(attached.get("program"))
        self.process = str(attached.get("process"))
        self._names = tuple(str(name) for name in attached.get("sockets") or ())
        self._directory = dialogue.directory
        self._timeout = timeout
        self._dialogue: Dialogue | None = dialogue
        self._turn = threading.Lock()
        self._held: dict[str, sockets_of_python.socket] = {}
        self._others: list[sockets_of_python.socket] = []
        self._registrar: Registrar | None = None
        self._exchange: Exchange | None = None
        self._closed = False
        _shares.add(self)

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<sockshare.Share of {self.process} at {self._directory}{', closed' if self._closed else ''}>"

    def sockets(self) -> tuple[str, ...]:
        """The names of the sockets that this process could have when it attached."""
        return self._names

    def socket(self, name: str) -> sockets_of_python.socket:
        """This process's one duplicate of the socket *name*: the same object at every call, to the end of the share.

        It is close-on-exec. A forked child has a duplicate of its own in the same object.

        Raises:
            UnknownSocket: No socket of that name is shared.
            NotPermitted: This process's program does not name it in its section.
            NoBroker: No answer in time.
            OSError: This process may open no more descriptors; nothing was taken.
        """
        with self._turn:
            self._open()
            held = self._held.get(name)
            # A program may have closed or detached it; then it gets another.
            if held is None or held.fileno() < 0:
                held = self._held[name] = _adopt(self._redeem_own(name))
            return held

    def registration(self, name: str, timeout: float | None = None) -> Claiming:
        """Hold the registration of the socket *name* for a ``with`` block, which begins once it is held.

        It is one for all threads of this process, which may each enter a block of their own, and released at the end of
        the last one; see `Registration`.

        Args:
            timeout: How long to wait in line, seconds; then the claim is withdrawn. None: for ever.

        Raises:
            TimeoutError: By the block, as are those below: it was not held in time.
            RegistrationLost: Another process's registration has cancelled it (registration = latest).
            UnknownSocket: No socket of that name is shared.
            NotPermitted: This process's program does not name it in its section.
        """
        return Claiming(functools.partial(self.claim, name), timeout)

    def claim(self, name: str) -> Registration:
        """Get in line for the registration of *name*, without waiting; `Registration.leave` leaves it.

        For the library for asyncio: it is not part of what a program may use.
        """
        with self._turn:
            self._open()
            if self._registrar is not None and self._registrar.ended:
                self._registrar.close()
                self._registrar = None
            if self._registrar is None:
                self._registrar = Registrar(self._directory, self._timeout)
            return self._registrar.claim(name)

    def ready(self, status: str = "") -> None:
        """Tell the broker that this process serves; *status* is shown to people.

        Raises:
            NoBroker: No answer in time.
        """
        with self._turn:
            self._ask("ready", status=status)

    def duplicate(self, name: str, pid: int) -> bytes:
        """A ticket for the socket *name*, good for process *pid* alone, once, for some seconds (WSADuplicateSocket).

        Any way will do to carry these 16 bytes there, where `redeem` takes them.

        Raises:
            UnknownSocket: No socket of that name is shared.
            NotPermitted: This process may not have it, or *pid* may not.
            NoBroker: No answer in time.
        """
        with self._turn:
            return self._ticket(name, pid=pid)

    def redeem(self, ticket: bytes) -> sockets_of_python.socket:
        """The socket that *ticket* is for (WSASocket); this process's own object for it when it has one already.

        Raises:
            TicketRefused: It is unknown, used, expired, or another process's.
            NoBroker: No answer in time.
            OSError: This process may open no more descriptors; the ticket was not spent.
        """
        with self._turn:
            self._open()
            ((name, fd),) = door.redeem(self._directory, [ticket], time.monotonic() + self._timeout)
            held = self._held.get(name)
            if held is not None and held.fileno() >= 0:
                if os.fstat(held.fileno()).st_ino == os.fstat(fd).st_ino:
                    os.close(fd)
                    return held
                self._others.append(held)  # of that name before the configuration was changed
            self._held[name] = sock = _adopt(fd)
            return sock

    def close(self) -> None:
        """Release the registrations, close the sockets and the connection to the broker.

        Nothing happens to the sockets themselves: their manager keeps them.

        Before this, take the sockets out of every selector, poll or epoll of yours. epoll keys on the open file
        description, which other processes keep: a registered duplicate that was closed reports events for ever, and
        cannot be unregistered any more (epoll(7), Q6).
        """
        self._closed = True  # whoever has the turn after this one begins nothing
        if self._exchange is not None:  # before our turn, which may be long in coming: these wait for no broker
            self._exchange.close()
        with self._turn:
            _shares.discard(self)
            if self._exchange is not None:
                self._exchange.close()
                self._exchange = None
            if self._registrar is not None:
                # First: who has it next is told while the sockets are still here.
                self._registrar.close()
                self._registrar = None
            for sock in (*self._held.values(), *self._others):
                sock.close()
            self._held.clear()
            self._others.clear()
            if self._dialogue is not None:
                self._dialogue.close()
                self._dialogue = None

    def __del__(self) -> None:
        # Its threads would go on: this process would be handed connections, and nobody could receive them.
        for left in (getattr(self, "_exchange", None), getattr(self, "_registrar", None)):
            if left is not None:
                left.abandon()

    def _exchanging(self, *, in_loop: bool = False) -> Exchange:
        from .exchange import Exchange  # not for who hands nothing over: it takes as long to import as the rest

        with self._turn:
            self._open()
            if self._exchange is None:
                self._exchange = Exchange(self._directory, self.program, self.process, in_loop=in_loop)
            return self._exchange

    # With the turn taken.

    def _open(self) -> None:
        if self._closed:
            raise SockshareError("can't ask the broker: this share is closed; attach again")

    def _ask(self, op: str, **fields: object) -> Answer:
        self._open()
        if self._dialogue is None:  # the first question after a fork
            self._dialogue = Dialogue(self._directory)
        return self._dialogue.ask(op, deadline=time.monotonic() + self._timeout, **fields)

    def _ticket(self, name: str, **fields: object) -> bytes:
        return bytes.fromhex(str(self._ask("ticket", socket=name, **fields)["ticket"]))

    def _redeem_own(self, name: str) -> int:
        deadline = time.monotonic() + self._timeout
        attempt = 1
        while True:
            try:
                ((_, fd),) = door.redeem(self._directory, [self._ticket(name)], deadline)
                return fd
            except TicketRefused:
                if attempt == _TICKETS:
                    raise
                attempt += 1

    def _after_fork(self) -> None:
        # Another thread may have had the turn, and it is not in this process. The connection is the parent's: kept from
        # being collected, never used.
        self._turn = threading.Lock()
        if self._exchange is not None:
            self._exchange.after_fork()
            _parents.append(self._exchange)
            self._exchange = None
        if self._dialogue is not None:
            _parents.append(self._dialogue)
            self._dialogue = None
        if self._registrar is not None:
            self._registrar.after_fork()
            _parents.append(self._registrar)
            self._registrar = None


def _adopt(fd: int) -> sockets_of_python.socket:
    """A socket object for the shared descriptor *fd*, which becomes its own, without touching a flag of it.

    ``socket.socket(fileno=fd)`` may: where the program has called `socket.setdefaulttimeout` it sets O_NONBLOCK, for
    every process that shares it; and an object must know that its descriptor does not block, which only
    ``setblocking`` can tell it. So an object is made on a descriptor of its own, told so, and then has the shared one
    put in its place.
    """
    try:
        with sockets_of_python.socket(sockets_of_python.AF_UNIX) as probe:
            os.dup2(fd, probe.fileno(), inheritable=False)
            domain, kind, protocol = (
                probe.getsockopt(sockets_of_python.SOL_SOCKET, option)
                for option in (_SO_DOMAIN, sockets_of_python.SO_TYPE, sockets_of_python.SO_PROTOCOL)
            )
        sock = sockets_of_python.socket(domain, kind, protocol)
        try:
            sock.setblocking(os.get_blocking(fd))
            os.dup2(fd, sock.fileno(), inheritable=False)
        except BaseException:
            sock.close()
            raise
        return sock
    except OSError as error:
        raise door.no_descriptor(error) from None
    finally:
        close_all([fd])


_shares: weakref.WeakSet[Share] = weakref.WeakSet()
_parents: list[Dialogue | Registrar | Exchange] = []


def _in_forked_child() -> None:
    for share in list(_shares):
        share._after_fork()


os.register_at_fork(after_in_child=_in_forked_child)
