"""The broker's life, where it is a program of supervisord: ``sockshare-broker``, and a spare one.

A start takes an interpreter 0.2 s, so a spare broker stands by, connected and told nothing. When the broker dies, the
spare is told everything, and the two exchange their names: ``sockshare-broker`` is always the one that serves, and what
supervisord starts anew is the spare. A broker connects to a socket of ours, which takes nobody but these two processes.

One that ends without having begun to serve, or as soon as it is started, waits in supervisord's state BACKOFF for its
next start, ever longer; supervisord shows the reason, and commands say it. Each start is a new interpreter, so that an
installation which was mended is taken up by the next of them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from supervisor.states import STOPPED_STATES, ProcessStates, SupervisorStates

from sockshare.host import absence
from sockshare.host.host import Host
from sockshare.host.life import BEGINS_WITHIN, LONGEST_PAUSE, growing
from sockshare.host.loop import Timer, guarded
from sockshare.kernel import closing, listeners, meeting
from sockshare.kernel.directory import Directory
from sockshare.kernel.peers import credentials

from .deaths import Deaths
from .polling import PollLoop
from .program import LINK, SPARE
from .sections import BROKER

log = logging.getLogger(__name__)

#: Seconds after a broker's start that its spare is started: not while the first one has work to do.
_SPARE_AFTER = 0.25
#: Seconds until a spare that has ended is started again; twice as many after each that does not come to stand by.
_SPARE_AGAIN = 1.0
#: Seconds until a broker is let in after one could not be: supervisord may be at its limit of descriptors.
_LET_IN_AGAIN = 1.0
#: A broker that ends within so many seconds of its start may be one that can't run at all.
_QUICK = 1.0
#: So many of those in a row are followed by the next at once; seconds until then after one more, twice as many each.
_QUICK_ENDS_FREE = 5
_FIRST_PAUSE = 0.05
#: Seconds by which supervisord's clock and ours may differ on when that is.
_SOON = 0.01

_LIVE = (ProcessStates.STARTING, ProcessStates.RUNNING)
_STOPPED_BY_HAND = (ProcessStates.STOPPING, ProcessStates.STOPPED)


class Life:
    """Who serves, who stands by.

    Args:
        supervisord: The Supervisor object there is now.
        host: Says hello to the one that serves.
        directory: The runtime directory, in which the link is made; the host's.
    """

    def __init__(self, loop: PollLoop, supervisord: Callable[[], Any], host: Host, directory: Directory) -> None:
        self._loop = loop
        self._supervisord = supervisord
        self._host = host
        self._directory = directory
        self._listener: socket.socket | None = None
        self._inode = 0
        self._stopped: str | None = None
        self._waiting: dict[int, socket.socket] = {}
        self._deaths = Deaths(loop, self._died)
        self._serving: int | None = None
        self._server: Any = None  # supervisord's process of that pid
        self._spare_due = False
        self._spare_ends = 0
        self._quick_ends = 0
        self._last: tuple[int, str | None] = (0, None)  # who served last, and why it never began (None: it did)
        self._begins: Timer | None = None
        self._failing = ""  # why there is no broker, while the next one waits for its start

    def open(self) -> None:
        """Make the socket that brokers connect to.

        Raises:
            OSError, ValueError: As `listeners.make`.
        """
        path = os.path.join(self._directory.path, LINK)
        self._listener = listeners.make(path, socket.SOCK_STREAM, mode=0o600, dir_fd=self._directory.fd)
        self._inode = os.stat(LINK, dir_fd=self._directory.fd, follow_symlinks=False).st_ino
        self._let_in()
        self._say_stopped(self._stopped)

    @property
    def reachable(self) -> bool:
        """Whether brokers find the socket where it was made."""
        try:
            return os.stat(os.path.join(self._directory.path, LINK)).st_ino == self._inode
        except OSError:
            return False

    @guarded(log)
    def reopen(self) -> None:
        """Make the socket anew in the runtime directory, which was removed, and is there again: the host's `reopen` is
        to be first."""
        self._close_listener()
        self.open()

    @guarded(log)
    def _let_in(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._acceptable)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            closing.close(self._listener)
            self._listener = None

    def close(self) -> None:
        """Close everything that is ours; what supervisord runs is its own."""
        self._deaths.close()
        self._cancel_late()
        for sock in self._waiting.values():
            sock.close()
        self._waiting.clear()
        self._serving = self._server = None
        self._close_listener()
        self._unlink(LINK)
        self._say_stopped(None)

    def descriptors(self) -> list[int]:
        """All that are open."""
        socks = [*self._waiting.values(), *([self._listener] if self._listener else [])]
        return [*(sock.fileno() for sock in socks), *self._deaths.descriptors()]

    @guarded(log)
    def kill(self) -> None:
        """Kill the broker that serves, as one that talks nonsense; the next is had as after any death."""
        process = self._process(self._serving)
        if process is not None:
            os.kill(process.pid, signal.SIGKILL)  # ours to bury still, so the pid is its own

    # Who is who.

    def _group(self) -> Any:
        return self._supervisord().process_groups.get(BROKER)

    def _named(self, name: str) -> Any:
        group = self._group()
        return None if group is None else group.processes.get(name)

    def _process(self, pid: int | None) -> Any:
        for name in (BROKER, SPARE):
            process = self._named(name)
            if process is not None and pid and process.pid == pid:
                return process
        return None

    def is_ours(self, process: Any) -> bool:
        """Whether *process* is the broker or the spare."""
        return process is self._named(BROKER) or process is self._named(SPARE)

    # What happens.

    @guarded(log)
    def _acceptable(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            self._can_not_let_in(error)
            return
        pid = credentials(sock).pid
        process = self._process(pid)
        if process is None or pid in self._waiting or pid == self._serving:
            log.warning("link: refused pid %d, which is no broker of ours", pid)
            closing.close(sock)
            return
        try:
            self._deaths.watch(pid)
        except OSError as error:
            closing.close(sock)  # it ends by that, and the next one comes
            self._can_not_let_in(error)
            return
        # Whoever may connect to the listener can send it none; a broker has us keep its gates.
        listeners.accept_descriptors(sock)
        if self._process(self._serving) is None:  # not `_serving`: that its death was noticed is not all of our hope
            self._serve(process, sock)
        else:
            self._waiting[pid] = sock
            self._spare_ends = 0

    def _can_not_let_in(self, error: OSError) -> None:
        assert self._listener is not None
        log.error("link: can't let a broker in: %s", error)
        # It stays readable, which must not keep supervisord busy.
        self._loop.remove_reader(self._listener.fileno())
        self._loop.call_later(_LET_IN_AGAIN, self._let_in)

    def _serve(self, process: Any, sock: socket.socket) -> None:
        if process is not self._named(BROKER):
            self._exchange()
        self._serving, self._server = process.pid, process
        log.info("broker: serves (pid=%d)", process.pid)
        self._cancel_late()
        self._begins = self._loop.call_later(BEGINS_WITHIN, self._end_late)
        self._host.serve(sock)
        self._start_spare_in(_SPARE_AFTER)

    @guarded(log)
    def begun(self) -> None:
        """The broker has begun to serve."""
        self._cancel_late()
        if self._failing:
            self._failing = ""
            log.info("broker: serves again (pid=%s)", self._serving)
            self._say_stopped(None)

    @guarded(log)
    def _end_late(self) -> None:
        self._begins = None
        log.error("broker: it has not begun within %g s (pid=%s)", BEGINS_WITHIN, self._serving)
        self.kill()

    def _cancel_late(self) -> None:
        if self._begins is not None:
            self._begins.cancel()
            self._begins = None

    def _exchange(self) -> None:
        """Let the broker and the spare have each other's name and configuration."""
        processes = self._group().processes
        broker, spare = processes[BROKER], processes[SPARE]
        broker.config, spare.config = spare.config, broker.config
        processes[BROKER], processes[SPARE] = spare, broker
        for dispatcher in spare.dispatchers.values():
            if getattr(dispatcher, "normallog", None) is not None:
                own = dispatcher.normallog
                dispatcher._init_normallog()  # the file of its new name
                dispatcher.childlog = dispatcher.normallog
                own.close()

    @guarded(log)
    def _died(self, pid: int) -> None:
        self._loop.hurry()  # supervisord buries it, and starts it anew, without its usual second of sleep
        waiting = self._waiting.pop(pid, None)
        if waiting is not None:
            waiting.close()
        if pid != self._serving:
            self._start_spare_in(growing(_SPARE_AGAIN, self._spare_ends))
            self._spare_ends += 1
            return
        process, self._serving, self._server = self._server, None, None
        # supervisord may have buried it by now, and have started it again.
        unburied = process is not None and process.pid == pid
        administrative = process is None or (process.killing if unburied else process.state in _STOPPED_BY_HAND)
        log.warning("broker: %s (pid=%d)", "stopped" if administrative else "ended", pid)
        self._cancel_late()
        self._last = pid, self._host.ended()
        if administrative:
            return
        for other, sock in list(self._waiting.items()):
            spare = self._process(other)
            if spare is not None and spare.state in _LIVE:
                del self._waiting[other]
                self._serve(spare, sock)
                return

    def changed(self, process: Any) -> None:
        """The broker or the spare has come to another state; called out of an event."""
        state = process.state
        if state == ProcessStates.STARTING:
            self._loop.call_later(0.0, lambda: self._started(process))
        if process is not self._named(BROKER):
            return
        if state == ProcessStates.STARTING:
            if not self._failing:
                self._say_stopped(None)
        elif state == ProcessStates.STOPPING:
            self._loop.call_later(0.0, self._stop_spare)
        elif state == ProcessStates.EXITED:
            pid = process.pid
            self._loop.call_later(0.0, lambda: self._buried(process, pid))  # before supervisord starts it anew
            self._loop.hurry()
        elif state == ProcessStates.BACKOFF:
            process.delay = min(process.delay, time.time() + LONGEST_PAUSE)  # supervisord's own grows without end
        elif state in STOPPED_STATES:
            self._failing = ""
            self._say_stopped(f"broker stopped: supervisorctl start {BROKER}")

    @guarded(log)
    def _buried(self, process: Any, pid: int) -> None:
        """The broker *pid* has ended by itself: have its next start wait, if that one could not begin."""
        if pid == self._serving:
            self._died(pid)
        served, reason = self._last
        if served != pid:
            reason = ""  # it did not even come to connect
        quick = time.time() - process.laststart < _QUICK
        if reason is None and not quick:
            self._quick_ends = 0
            return
        self._quick_ends = max(self._quick_ends + 1, _QUICK_ENDS_FREE if reason else 0)
        if self._quick_ends < _QUICK_ENDS_FREE:
            return
        running = self._supervisord().options.mood >= SupervisorStates.RUNNING
        if process is not self._named(BROKER) or process.state != ProcessStates.EXITED or not running:
            return  # the spare serves, or it was started, or stopped, by hand
        pause = growing(_FIRST_PAUSE, self._quick_ends - _QUICK_ENDS_FREE)
        how = f"exit status {process.exitstatus}" if process.exitstatus >= 0 else "killed by a signal"
        reason = reason or f"it does not begin to serve ({how}); see: supervisorctl tail {BROKER}"
        log.error("broker: %s; the next attempt is in %g s", reason, pause)
        process.change_state(ProcessStates.BACKOFF)
        process.spawnerr = reason
        process.delay = time.time() + pause
        self._loop.call_later(pause + _SOON, self._loop.hurry)
        if reason != self._failing:
            self._failing = reason
            self._say_stopped(f"{reason}; it is tried again every {LONGEST_PAUSE:g} s")

    @guarded(log)
    def _started(self, process: Any) -> None:
        if process.pid:
            self._deaths.watch(process.pid)

    def _start_spare_in(self, seconds: float) -> None:
        if not self._spare_due:
            self._loop.call_later(seconds, self._start_spare)
            self._spare_due = True

    @guarded(log)
    def _start_spare(self) -> None:
        self._spare_due = False
        broker, spare = self._named(BROKER), self._named(SPARE)
        if (
            broker is not None
            and spare is not None
            and broker.state in _LIVE
            and not spare.pid
            and (spare.state in STOPPED_STATES or spare.state == ProcessStates.BACKOFF)
            and self._supervisord().options.mood >= SupervisorStates.RUNNING
        ):
            spare.spawn()

    @guarded(log)
    def _stop_spare(self) -> None:
        spare = self._named(SPARE)
        if spare is not None and spare.state in _LIVE:
            spare.stop()

    @property
    def stopped(self) -> str | None:
        """Why there is no broker, where somebody has stopped it on purpose, and what to do."""
        return self._stopped

    def _say_stopped(self, sentence: str | None) -> None:
        """Let commands know why nobody answers."""
        self._stopped = sentence
        absence.say(self._directory, meeting.STOPPED, sentence)

    def _unlink(self, name: str) -> None:
        try:
            self._directory.unlink(name)
        except OSError:
            pass
