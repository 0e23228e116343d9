"""The broker's life, where it is the host's own child: started, watched, replaced at once.

A spare broker stands by, started and loaded and told nothing: it becomes the broker when the one before it dies, which
takes a message instead of the start of an interpreter. A broker that is killed tells nothing about the next one. One
that ends by itself as soon as it is started, or without having begun to serve, does: after a few of those the next
attempts wait, ever longer, and whoever waits for a broker is told why there is none. Each is a new process, so that an
installation which was mended is taken up by the next of them.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from sockshare.kernel import logfile
from sockshare.kernel.peers import pidfd_open

from .loop import Loop, Timer, guarded

log = logging.getLogger(__name__)

#: `--link-fd N` is added to it.
COMMAND = (sys.executable, "-m", "sockshare.broker")

#: A broker that ends within so many seconds of its start may be one that can't run at all.
_QUICK = 1.0
#: So many quick ends in a row are answered at once.
_QUICK_ENDS_FREE = 5
_FIRST_PAUSE = 0.05
#: Seconds at most until a broker is started again.
LONGEST_PAUSE = 10.0
#: Seconds until a spare one that ended at once is followed by another; twice as many after each.
_SPARE_PAUSE = 1.0
#: Seconds that a broker has from its hello to its first question; one that takes longer does nothing at all.
BEGINS_WITHIN = 20.0
#: Seconds after a broker's start that its spare is started: not while the first one has work to do.
_SPARE_AFTER = 0.25


class _Instance:
    """One process, and the host's end of its link."""

    __slots__ = ("link", "pidfd", "process", "since")

    def __init__(self, command: Sequence[str], output: str | None, now: float) -> None:
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The broker has the only other end, so the link ends when it dies. The file is opened anew for each: it
            # may have been rotated.
            with theirs, open(logfile.append(output or os.devnull), "ab") as stream:
                self.process = subprocess.Popen(
                    [*command, "--link-fd", str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                )
        except BaseException:
            self.link.close()
            raise
        try:
            # Our own child can't be gone for good before we wait for it: this is its pidfd and nobody else's.
            self.pidfd = pidfd_open(self.process.pid)
        except BaseException:
            self.link.close()
            self.process.kill()
            self.process.wait()
            raise
        self.since = now

    def bury(self) -> int:
        """Its exit status; it has died, or dies of this."""
        os.close(self.pidfd)
        # With its pidfd readable this does not block (pidfd_open(2)), nor after SIGKILL for longer than that takes.
        return self.process.wait()


class Life:
    """One broker at a time, from `start` to `stop`, and a spare one.

    Args:
        started: Called with the host's end of each new broker's link.
        ended: Called when a broker has died, before the next is started: what it wrote last is still in the link. It
            returns why that one never began to serve (``""``: it did not say), or None if it did.
        absent: Called with a sentence when there will be no broker for some time, with None when there is one.
        output: The file to which its stdout and stderr are appended; None: nowhere.
        command: What to start.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        started: Callable[[socket.socket], None],
        ended: Callable[[], str | None],
        absent: Callable[[str | None], object] = lambda sentence: None,
        output: str | None = None,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._started = started
        self._ended = ended
        self._absent = absent
        self._output = output
        self._command = command
        self._clock = clock
        self._broker: _Instance | None = None
        self._spare: _Instance | None = None
        self._quick_ends = self._spare_ends = 0
        self._begins: Timer | None = None
        self._late = False
        self._said = ""  # why there is no broker, where that was told
        self._killed = False
        self._timer: Timer | None = None
        self._stopped = True

    @property
    def pid(self) -> int | None:
        """The broker's; None between two of them."""
        return None if self._broker is None else self._broker.process.pid

    def start(self) -> None:
        """Start a broker, and another whenever one dies. A broker that can't be started is logged and tried again."""
        self._stopped = False
        self._appoint()

    @guarded(log)
    def _appoint(self) -> None:
        """Have a broker: the spare one, or a new one."""
        self._timer = None
        if self._stopped or self._broker is not None:
            return
        instance, self._spare = self._spare, None
        self._late = False
        if instance is None:
            try:
                instance = self._spawn()
            except Exception as error:  # whatever it is: there has to be a next attempt
                self._again(f"can't start it: {error}")
                return
        self._broker = instance
        self._killed = False
        log.info("broker: started (pid=%d)", instance.process.pid)
        self._begins = self._loop.call_later(BEGINS_WITHIN, self._end_late)
        self._started(instance.link)
        self._timer = self._loop.call_later(_SPARE_AFTER, self._stand_by)

    @guarded(log)
    def begun(self) -> None:
        """The broker has begun to serve."""
        self._cancel_late()
        if self._said:
            self._said = ""
            log.info("broker: serves again (pid=%s)", self.pid)
            self._absent(None)

    @guarded(log)
    def _end_late(self) -> None:
        self._late = True
        self.kill()

    def _cancel_late(self) -> None:
        if self._begins is not None:
            self._begins.cancel()
            self._begins = None

    @guarded(log)
    def _stand_by(self) -> None:
        self._timer = None
        if self._stopped or self._spare is not None:
            return
        try:
            self._spare = self._spawn()
        except Exception as error:
            log.error("broker: can't start a spare one: %s", error)
            self._stand_by_later(failed=True)

    def _stand_by_later(self, *, failed: bool) -> None:
        self._spare_ends = self._spare_ends + 1 if failed else 0
        if self._timer is None:
            pause = growing(_SPARE_PAUSE, self._spare_ends - 1) if failed else 0.0
            self._timer = self._loop.call_later(pause, self._stand_by)

    def _spawn(self) -> _Instance:
        instance = _Instance(self._command, self._output, self._clock())
        self._loop.add_reader(instance.pidfd, lambda: self._died(instance))
        return instance

    @guarded(log)
    def _died(self, instance: _Instance) -> None:
        self._loop.remove_reader(instance.pidfd)
        status = instance.bury()
        # SIGKILL from outside (a person, the kernel short of memory) says nothing of the installation.
        outside = status == -signal.SIGKILL and not self._killed
        quick = not outside and self._clock() - instance.since < _QUICK
        if instance is self._spare:
            log.warning("broker: the spare one ended (pid=%d, %s)", instance.process.pid, _describe(status))
            self._spare = None
            instance.link.close()
            self._stand_by_later(failed=quick)
            return
        log.warning("broker: ended (pid=%d, %s)", instance.process.pid, _describe(status))
        self._broker = None
        self._cancel_late()
        reason: str | None = ""
        try:
            reason = self._ended()
        finally:
            if outside or (reason is None and not quick):
                self._again(None)
            elif reason:
                self._again(reason, at_once=False)
            elif self._late:
                self._again(f"it has not begun within {BEGINS_WITHIN:g} s of its start", at_once=False)
            else:
                self._again(
                    f"it ends as soon as it is started ({_describe(status)}); see its log {self._output or ''}".strip()
                )

    def _again(self, reason: str | None, *, at_once: bool = True) -> None:
        """Have the next broker; after one that could not begin, for *reason*, at a growing pause, if not *at_once*."""
        if self._stopped:
            return
        self._quick_ends = 0 if reason is None else self._quick_ends + 1
        if not at_once:
            self._quick_ends = max(self._quick_ends, _QUICK_ENDS_FREE)
        excess = self._quick_ends - _QUICK_ENDS_FREE
        if reason is None:
            self._cancel()
            self._appoint()
        elif excess < 0:
            log.error("broker: %s", reason)
            self._later(0.0)
        else:
            pause = growing(_FIRST_PAUSE, excess)
            log.error("broker: %s; the next attempt is in %g s", reason, pause)
            if reason != self._said:
                self._said = reason
                self._absent(f"{reason}; it is tried again every {LONGEST_PAUSE:g} s")
            self._later(pause)

    def _later(self, delay: float) -> None:
        self._cancel()
        self._timer = self._loop.call_later(delay, self._appoint)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def kill(self) -> None:
        """Kill the broker, as one that talks nonsense; the next is started as after any death."""
        # Its link ends an instant before its pidfd says that it is dead: who killed it then was not us.
        if self._broker is not None:
            ended = select.poll()
            ended.register(self._broker.pidfd, select.POLLIN)
            if not ended.poll(0):
                self._killed = True
                self._broker.process.kill()

    def stop(self) -> None:
        """End the broker for good, and return when it is gone: it keeps nothing that a signal could make it lose."""
        self._stopped = True
        self._cancel()
        self._cancel_late()
        for instance in (self._broker, self._spare):
            if instance is not None:
                self._loop.remove_reader(instance.pidfd)
                instance.process.kill()
                instance.bury()
        if self._spare is not None:
            self._spare.link.close()
        self._broker = self._spare = None


def growing(first: float, times: int) -> float:
    """Seconds to wait after *times* failures since the *first* pause: twice as long each time, up to a limit."""
    return min(first * float(2 ** min(max(times, 0), 20)), LONGEST_PAUSE)


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
