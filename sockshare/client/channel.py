"""What a process has asked the broker to be told of, for as long as it lives: its own DEALER, and the one thread of it.

What was asked is said again, with the same id, whenever a broker has begun to answer: a broker that was killed has
forgotten it. The thread also attends to what `attend` names while nobody else does.

An error that nobody expects fails all that stands, so that whoever waits is told, and is logged; then the thread goes
on with a new DEALER, after a pause that grows. It ends with `close`, or when nobody can call it any more (`abandon`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import zmq

from sockshare.core.errors import ProtocolError, SockshareError

from .dialogue import RESEND_FIRST, RESEND_LAST, Answer, Dialogue, checked

log = logging.getLogger(__name__)

#: What stands is said again this often, seconds.
AGAIN = 10.0
#: The longest pause after failures, seconds.
_LONGEST_PAUSE = 2.0


class Attended(Protocol):
    """What the thread is to look after between two messages."""

    def watch(self) -> tuple[int, float | None]:
        """The descriptor to watch now (-1: none), and how long at most, seconds."""

    def attend(self) -> None:
        """It is readable, or the time is over."""

    def abandoned(self) -> None:
        """Nobody else has this any more: close the channel."""


class Standing:
    """A question that stays open.

    Args:
        fields: What it says, at each time that it is said.
        hear: Called in the thread with each event, which is a dictionary.
        fail: Called in the thread when the broker refuses it; it is closed then.
    """

    __slots__ = ("due", "fail", "fields", "hear", "number", "op", "pause")

    def __init__(
        self,
        op: str,
        fields: Callable[[], Mapping[str, object]],
        hear: Callable[[dict[str, Any]], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.op = op
        self.fields = fields
        self.hear = hear
        self.fail = fail
        self.number = 0
        self.due = 0.0
        self.pause = RESEND_FIRST


class Channel:
    """The channel to the broker of *directory*.

    Raises:
        NoBroker, OSError: As `Dialogue`.
    """

    def __init__(self, directory: str, attended: Attended) -> None:
        self.directory = directory
        self._attended = attended
        self._lock = threading.Lock()
        self._new: list[Standing] = []
        self._again: set[Standing] = set()
        self._standing: dict[int, Standing] = {}
        self._last = 0
        self._ended = False
        self._abandoned = False
        self._pause = RESEND_FIRST  # after a failure
        self._connect()
        try:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            self._disconnect()
            raise
        # A daemon: what a program forgets to close must not keep it from ending.
        self._thread = threading.Thread(target=self._serve, name="sockshare-channel", daemon=True)
        self._thread.start()

    def ask(self, standing: Standing) -> Standing:
        """Ask it, and again of every broker to come."""
        with self._lock:
            ended = self._ended
            if not ended:
                self._new.append(standing)
        if ended:
            standing.fail(_closed())
        self.turn()
        return standing

    def again(self, standing: Standing) -> None:
        """What it says has changed: say it again."""
        with self._lock:
            self._again.add(standing)
        self.turn()

    def turn(self) -> None:
        """Have the thread look at everything anew."""
        with self._lock:
            if not self._ended:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End it; may be called in its own thread's callbacks too."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def abandon(self) -> None:
        """Nobody can call it any more. Takes no lock: garbage is collected in any thread, whatever that has locked."""
        self._abandoned = True
        if not self._ended:
            os.eventfd_write(self._wake, 1)

    # In the thread.

    def _connect(self) -> None:
        self._met = False
        self._dialogue = Dialogue(self.directory)
        try:
            self._handshakes = self._dialogue.handshakes()
        except BaseException:
            self._dialogue.close()
            raise

    def _disconnect(self) -> None:
        if not self._dialogue.socket.closed:
            self._dialogue.socket.disable_monitor()
            self._handshakes.close(0)
        self._dialogue.close()

    def _serve(self) -> None:
        while not self._ended:
            try:
                if self._abandoned:
                    self._attended.abandoned()
                elif self._dialogue.socket.closed:
                    self._connect()
                else:
                    self._step()
            except Exception as problem:
                self._recover(problem)
        self._fail(_closed())
        self._disconnect()
        os.close(self._wake)

    def _recover(self, problem: Exception) -> None:
        if isinstance(problem, ProtocolError):
            error: Exception = problem
            log.error("channel: %s", problem)
        else:
            error = SockshareError(f"can't go on: sockshare has a bug ({problem!r})")
            log.error("channel: it failed, and begins anew", exc_info=problem)
        self._disconnect()
        self._fail(error)
        over, self._pause = time.monotonic() + self._pause, min(self._pause * 2, _LONGEST_PAUSE)
        while not self._ended and not self._abandoned and (left := over - time.monotonic()) > 0:
            time.sleep(min(left, RESEND_FIRST))

    def _fail(self, error: Exception) -> None:
        with self._lock:
            left = [*self._standing.values(), *self._new]
            self._new, self._standing, self._again = [], {}, set()
        for standing in left:
            try:
                standing.fail(error)
            except Exception:
                log.exception("channel: nobody could be told that %r has failed", standing.op)

    def _step(self) -> None:
        fd, longest = self._attended.watch()
        now = time.monotonic()
        times = [] if longest is None else [now + longest]
        for standing in list(self._standing.values()):
            if standing.due <= now:
                self._say(standing, now)
            times.append(standing.due)
        poller = zmq.Poller()
        poller.register(self._dialogue.socket, zmq.POLLIN)
        poller.register(self._handshakes, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        if fd >= 0:
            poller.register(fd, zmq.POLLIN)
        ready = dict(poller.poll(max(0, int((min(times) - now) * 1000) + 1) if times else None))
        if self._wake in ready:
            self._obey()
        self._meet()
        while (answer := self._dialogue.heard()) is not None:
            self._hear(answer)
        if fd in ready or longest is not None:
            self._attended.attend()

    def _obey(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        with self._lock:
            new, self._new = self._new, []
            again, self._again = self._again, set()
        for standing in new:
            self._last += 1
            standing.number = self._last
            self._standing[standing.number] = standing
        for standing in again:
            standing.due, standing.pause = 0.0, RESEND_FIRST

    def _say(self, standing: Standing, now: float) -> None:
        standing.due = now + standing.pause
        standing.pause = min(standing.pause * 2, RESEND_LAST)
        self._dialogue.begin_as(standing.number, standing.op, **standing.fields())

    def _meet(self) -> None:
        met = False
        while self._handshakes.poll(0):
            self._handshakes.recv_multipart()
            met = True
        if met and self._met:  # what was said before the first one has waited for it
            for standing in self._standing.values():
                standing.due, standing.pause = 0.0, RESEND_FIRST
        self._met |= met

    def _hear(self, answer: Answer) -> None:
        standing = self._standing.get(answer.get("id"))  # type: ignore[arg-type]
        if standing is None:
            return
        if standing.due:  # else it has changed since, and this is no answer to what it says now
            standing.due, standing.pause = time.monotonic() + AGAIN, RESEND_FIRST
        self._pause = RESEND_FIRST
        try:
            if "event" not in answer:
                checked(answer)
                del self._standing[standing.number]
                standing.hear({"over": True})
            else:
                standing.hear(answer["event"])
        except SockshareError as error:
            self._standing.pop(standing.number, None)
            standing.fail(error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._standing.pop(standing.number, None)
            standing.fail(ProtocolError(f"can't understand the broker at {self.directory}: {answer!r:.80} ({error!r})"))


def _closed() -> SockshareError:
    return SockshareError("can't go on: this share was closed")
