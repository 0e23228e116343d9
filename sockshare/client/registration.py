"""`Registration`: which process is told of what waits on a shared socket, as a program sees it.

One thread a share speaks with the broker about all registrations of this process; it is there from the first one to
the end of the share, and does nothing but wait as long as nothing changes.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from sockshare.core.errors import ProtocolError, RegistrationLost, SockshareError

from .claims import Claim, Claims

#: How long a release, and the end of a share, wait until the broker knows what was released, seconds.
_LAST_WORDS = 1.0

log = logging.getLogger(__name__)


class Registration:
    """This process's registration of one shared socket: made by ``share.registration(name)``, for all its threads.

    Don't wait for the socket itself. Wait, with any selector, for this object to be readable: it is when something
    waits on the socket and this process holds the registration. Then, before each accept or recv, ask `waiting`. While
    it is revoked there is nothing to do: it stays in line, is silent, and may be held again later.

    Take it out of every selector of yours before you leave its ``with`` block: the broker has a duplicate of its
    descriptor, and a registered one that was closed here can't be unregistered any more (epoll(7), Q6).

    Attributes:
        name: Of the socket.
        revoked: Set while it is not held, cleared when it is held again.
    """

    def __init__(self, name: str, registrar: Registrar) -> None:
        self.name = name
        self.revoked = threading.Event()
        self.revoked.set()
        self._registrar = registrar
        self.claim = Claim(name)
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self.users = 0
        self.given_up = False
        self._standing = "asked"
        self._epoch = 0
        self._has_gate = False
        self._error: Exception | None = None
        self._watchers: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<sockshare.Registration of {self.name!r}: {self._standing}, epoch {self._epoch}>"

    @property
    def epoch(self) -> int:
        """Of the present hold: it is larger than any before it of this socket, in whatever process.

        Raises:
            RegistrationLost: It is not held now.
        """
        self._own()
        with self._changed:
            if self._standing != "held":
                raise self._lost()
            return self._epoch

    def fileno(self) -> int:
        """The descriptor to watch; -1 once it is released.

        Raises:
            RegistrationLost: This is a fork of the process whose it is.
        """
        self._own()
        gate = self.claim.gate
        return -1 if gate is None else gate.fileno()

    def waiting(self) -> bool:
        """Whether something waits on the socket and this process holds the registration, now: then accept, or recv.

        Raises:
            RegistrationLost: This is a fork of the process whose it is.
        """
        self._own()
        with self._changed:  # it may be released by another thread
            gate, tally = self.claim.gate, self.claim.tally
            if gate is None or gate.fileno() < 0 or not gate.poll():
                return False
            if tally is not None:
                os.eventfd_write(tally, 1)
            return True

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is held (again).

        Raises:
            TimeoutError: It is not within *timeout* seconds.
            RegistrationLost: It never will be: it was cancelled by another process's (registration = latest), or is
                released.
            UnknownSocket, NotPermitted: The broker refuses it.
            SockshareError, OSError: What else the broker or the kernel refuses.
        """
        self._own()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._standing != "held":
                if self._standing == "over":
                    raise self._lost()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"can't hold the registration of {self.name!r}: not within {timeout:g} s")
                self._changed.wait(left)

    def release(self) -> None:
        """Give it up, for all threads of this process: the next process in line has it. May be called again.

        Returns when the broker knows; if there is none for long, it will be told as soon as there is one.
        """
        if os.getpid() == self._pid:
            self._registrar.release(self)
            with self._changed:
                patience = min(self._registrar.timeout, _LAST_WORDS)  # its manager may be about to end, with the broker
                if not self._changed.wait_for(lambda: self._standing == "over", patience):
                    return  # the thread still needs the gate, and closes it
        self.close_gate()

    # For the registrar and for asyncio.

    def leave(self) -> bool:
        """One who claimed it needs it no longer; whether that was the last, and it is about to be released."""
        return os.getpid() != self._pid or self._registrar.leave(self)

    @property
    def error(self) -> Exception | None:
        """Why it never will be held; None if it may."""
        with self._changed:
            return self._lost() if self._standing == "over" else None

    @property
    def held(self) -> bool:
        """Whether it is held now."""
        return self._standing == "held"

    @property
    def in_line(self) -> bool:
        """Whether it can be watched: the broker has given a gate."""
        return self._has_gate

    def watch(self, watcher: Callable[[], None]) -> None:
        """Have *watcher* called after each change, in the thread that hears of it."""
        with self._changed:
            self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """No longer."""
        with self._changed:
            self._watchers.remove(watcher)

    def hear(self) -> None:
        """Take over what the claim says; in the registrar's thread."""
        claim = self.claim
        with self._changed:
            self._has_gate = claim.gate is not None
            # The claim may stand before we can watch for what it lets through.
            self._standing = claim.standing if claim.gate is not None or claim.standing == "over" else "asked"
            self._epoch, self._error = claim.epoch, claim.error
            if self._standing == "held":
                self.revoked.clear()
            else:
                self.revoked.set()
            if self._standing == "over" and self.given_up:
                self.close_gate()
            self._changed.notify_all()
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher()

    def end(self, error: Exception) -> None:
        """It is over, unless it is already, because of *error*; nobody speaks with the broker any more."""
        if self.claim.standing != "over":
            self.claim.standing, self.claim.error = "over", error
        self.hear()

    def after_fork(self) -> None:
        """In the child it is nobody's; who tries to use it is told."""
        self._changed = threading.Condition()  # another thread may have had it
        self._watchers = []
        self.revoked = threading.Event()
        self.revoked.set()

    def _own(self) -> None:
        if os.getpid() != self._pid:
            raise RegistrationLost(
                f"can't use the registration of {self.name!r}: pid {self._pid} holds it, not its fork {os.getpid()};"
                " claim one here"
            )

    def _lost(self) -> Exception:
        if self._error is not None:
            return copy.copy(self._error)  # several threads may raise it
        if self._standing == "over":
            return RegistrationLost(f"can't use the registration of {self.name!r}: it was released")
        return RegistrationLost(f"can't use the registration of {self.name!r}: it is not held now; wait() for it")

    def close_gate(self) -> None:
        """Close the descriptor; nobody watches it any more."""
        with self._changed:
            if self.claim.gate is not None:
                self.claim.gate.close()
            if self.claim.tally is not None:
                os.close(self.claim.tally)
                self.claim.tally = None


class Claiming:
    """What ``share.registration(name)`` returns: enter it to hold the registration, leave it to release it."""

    def __init__(self, claim: Callable[[], Registration], timeout: float | None) -> None:
        self._claim = claim
        self._timeout = timeout
        self._entered: list[Registration] = []

    def __enter__(self) -> Registration:
        registration = self._claim()
        try:
            registration.wait(self._timeout)
        except BaseException:
            registration.leave()
            raise
        self._entered.append(registration)
        return registration

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        registration = self._entered.pop()
        if registration.leave():
            registration.release()


class Registrar:
    """The thread that claims and releases the registrations of one share.

    Args:
        directory: The broker's runtime directory.
        timeout: How long a release waits for the broker, seconds.

    Raises:
        NoBroker, OSError: As `Claims`.
    """

    def __init__(self, directory: str, timeout: float) -> None:
        self.timeout = timeout
        self.ended = False  # it serves nobody any more
        self._abandoned = False
        self._lock = threading.RLock()
        self._of_name: dict[str, Registration] = {}
        self._of_claim: dict[Claim, Registration] = {}
        self._new: list[Registration] = []  # to be claimed, or released
        self._claims = Claims(directory, self._changed)
        try:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            self._claims.close()
            raise
        self._claims.wake_by(self._wake)
        # A daemon: what a program forgets to close must not keep it from ending.
        self._thread = threading.Thread(target=self._serve, name="sockshare-registrar", daemon=True)
        self._thread.start()

    def claim(self, name: str) -> Registration:
        """The registration of *name*, claimed unless it is; each call needs its `leave`."""
        with self._lock:
            if self.ended:
                raise SockshareError(f"can't claim the registration of {name!r}: this share is closed; attach again")
            found = self._of_name.get(name)
            if found is None:
                found = self._of_name[name] = Registration(name, self)
                self._ask(found)
            found.users += 1
            return found

    def leave(self, registration: Registration) -> bool:
        """See `Registration.leave`."""
        with self._lock:
            registration.users -= 1
            if registration.users:
                return False
            self.release(registration)
            return True

    def release(self, registration: Registration) -> None:
        """Release it, without waiting."""
        with self._lock:
            if registration.given_up:
                return
            registration.given_up = True
            if self._of_name.get(registration.name) is registration:
                del self._of_name[registration.name]
            if not self.ended:
                self._ask(registration)

    def close(self) -> None:
        """Release all, and end."""
        with self._lock:
            registrations = list(self._of_name.values())
            for registration in registrations:
                self.release(registration)
            self.ended = True
            os.eventfd_write(self._wake, 1)
        self._thread.join()
        for registration in registrations:
            registration.close_gate()
        os.close(self._wake)

    def abandon(self) -> None:
        """Nobody can claim any more: it ends with its last registration. Takes no lock, as `Channel.abandon`."""
        self._abandoned = True
        if not self.ended:
            os.eventfd_write(self._wake, 1)

    def after_fork(self) -> None:
        """In the child nothing of it may be used."""
        for registration in {*self._of_name.values(), *self._of_claim.values(), *self._new}:
            registration.after_fork()

    def _ask(self, registration: Registration) -> None:
        self._new.append(registration)
        os.eventfd_write(self._wake, 1)

    # In the thread.

    def _serve(self) -> None:
        error: Exception = SockshareError("can't hold the registration: this share was closed")
        try:
            while not self.ended and not (self._abandoned and not self._of_name):
                self._claims.step()
                self._obey()
            self._obey()
            give_up = time.monotonic() + min(self.timeout, _LAST_WORDS)
            while self._claims.standing and (left := give_up - time.monotonic()) > 0:
                self._claims.step(left)
        except ProtocolError as problem:
            error = problem
        except Exception as problem:  # who waits must not wait for ever
            error = SockshareError(f"can't hold the registration: sockshare has a bug ({problem!r})")
            log.error("registration: it failed; all of this process are over", exc_info=problem)
        finally:
            with self._lock:
                self.ended = True
                left_over = {*self._new, *self._of_claim.values()}
            for registration in left_over:
                try:
                    registration.end(error)
                except Exception:
                    log.exception("registration: %r could not be told that it is over", registration.name)
            self._claims.close()
            if self._abandoned:  # nobody is left to close it
                os.close(self._wake)

    def _obey(self) -> None:
        with self._lock:
            new, self._new = self._new, []
            try:
                os.eventfd_read(self._wake)
            except BlockingIOError:
                pass
        for registration in new:
            claim = registration.claim
            if claim.standing == "over":
                registration.hear()
                continue
            if claim not in self._of_claim:
                self._of_claim[claim] = registration
                self._claims.add(claim)
            if registration.given_up:
                self._claims.release(claim)

    def _changed(self, claim: Claim) -> None:
        registration = self._of_claim[claim]
        if claim.standing == "over":
            del self._of_claim[claim]
        registration.hear()
