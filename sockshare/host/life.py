"""The broker's life, where it is the host's own child: started, watched, replaced at once.

A spare broker stands by, started and loaded and told nothing: it becomes the broker when the one before it dies, which
takes a message instead of the start of an interpreter. A broker that is killed tells nothing about the next one. One
that ends by itself as soon as it is started does: after a few of those within a second the next attempts wait, at most
a second each.
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
_LONGEST_PAUSE = 1.0
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
        ended: Called when a broker has died, before the next is started: what it wrote last is still in the link.
        output: The file to which its stdout and stderr are appended; None: nowhere.
        command: What to start.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        started: Callable[[socket.socket], None],
        ended: Callable[[], None],
        output: str | None = None,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._started = started
        self._ended = ended
        self._output = output
        self._command = command
        self._clock = clock
        self._broker: _Instance | None = None
        self._spare: _Instance | None = None
        self._quick_ends = 0
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
        if instance is None:
            instance = self._spawn()
            if instance is None:
                return
        self._broker = instance
        self._killed = False
        log.info("broker: started (pid=%d)", instance.process.pid)
        self._started(instance.link)
        self._timer = self._loop.call_later(_SPARE_AFTER, self._stand_by)

    @guarded(log)
    def _stand_by(self) -> None:
        self._timer = None
        if not self._stopped and self._spare is None:
            self._spare = self._spawn()

    def _spawn(self) -> _Instance | None:
        try:
            instance = _Instance(self._command, self._output, self._clock())
        except OSError as error:
            log.error("broker: can't start it: %s", error)
            self._again(quick=True)
            return None
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
            if self._timer is None:
                self._timer = self._loop.call_later(_LONGEST_PAUSE if quick else 0.0, self._stand_by)
            return
        log.warning("broker: ended (pid=%d, %s)", instance.process.pid, _describe(status))
        self._broker = None
        try:
            self._ended()
        finally:
            self._again(quick)

    def _again(self, quick: bool) -> None:
        if self._stopped:
            return
        self._quick_ends = self._quick_ends + 1 if quick else 0
        excess = self._quick_ends - _QUICK_ENDS_FREE
        if self._quick_ends == 0:
            self._cancel()
            self._appoint()
        elif excess < 0:
            self._later(0.0)
        else:
            pause = min(_FIRST_PAUSE * 2 ** min(excess, 10), _LONGEST_PAUSE)
            log.error("broker: it ended %d times at once; the next attempt is in %g s", self._quick_ends, pause)
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
        for instance in (self._broker, self._spare):
            if instance is not None:
                self._loop.remove_reader(instance.pidfd)
                instance.process.kill()
                instance.bury()
        if self._spare is not None:
            self._spare.link.close()
        self._broker = self._spare = None


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
