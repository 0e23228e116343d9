"""epoll_ctl(2) on an epoll of another process.

An entry is found by the file *and the descriptor number it was added under*, so the shared socket must have that very
number here while epoll_ctl runs; yet the number may be in use. A thread with a descriptor table of its own
has every number free. It lives as long as the process: the table starts empty (nothing is kept open by it) and
is emptied after every call; what a call needs it fetches by pidfd_getfd(2), the shared socket too.

Python code in such a thread must not free what other threads opened: a socket that the garbage collector closes there
would be closed by number in the wrong table and leak. So the collector rests while the thread works, and the thread
runs nothing but these few lines.
"""

from __future__ import annotations

import errno
import gc
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sockshare.kernel import syscalls


class Change(NamedTuple):
    """One call of epoll_ctl: the operation, the events and the data of the entry."""

    operation: int
    events: int = 0
    data: int = 0
    number: int | None = None  # under which the entry is; None: the number that `control` was given
    settled: int = 0  # the errno that says that there is nothing to do


class ControlError(OSError):
    """A step failed; `step` says which: ``thread``, ``socket``, ``number``, ``process``, ``epoll`` or ``change``.

    Attributes:
        done: How many changes were made before it.
    """

    step = ""
    done = 0


def control(pid: int, epfd: int, tfd: int, sock_fd: int, changes: Sequence[Change]) -> None:
    """Make *changes*, in order, to the entry of our socket *sock_fd* under the number *tfd* in epoll *epfd* of *pid*.

    Thread-safe; about 0.1 ms.

    Raises:
        ControlError: With the errno of the step that failed. Changes before it stay.
    """
    outcome = _current().run(pid, epfd, tfd, sock_fd, changes)
    if outcome is not None:
        step, number, done = outcome
        error = ControlError(number, os.strerror(number))
        error.step, error.done = step, done
        raise error


_Outcome = tuple[str, int, int] | None


class _Job:
    __slots__ = ("arguments", "done", "outcome")

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.outcome: _Outcome = None
        self.done = threading.Lock()
        self.done.acquire()


class _Controller:
    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._broken: _Outcome = None
        opened = _Job()
        with _collector_rests():
            threading.Thread(target=self._serve, args=(opened,), name="sockshare-epoll", daemon=True).start()
            opened.done.acquire()
        self._broken = opened.outcome

    def run(self, *arguments: Any) -> _Outcome:
        if self._broken is not None:
            return self._broken
        job = _Job(*arguments)
        with self._turn, _collector_rests():
            self._jobs.put(job)
            job.done.acquire()
        return job.outcome

    def _serve(self, job: _Job) -> None:
        # Both at once, so that not even for a moment a copy of the whole table keeps this process's sockets open.
        # (unshare(2) would do the first half, but container runtimes refuse it.)
        result = syscalls.close_range(0, syscalls.LAST_DESCRIPTOR, syscalls.CLOSE_RANGE_UNSHARE)
        if result < 0:
            job.outcome = ("thread", -result, 0)
        job.done.release()
        while result >= 0:
            job = self._jobs.get()
            try:
                job.outcome = self._perform(*job.arguments)
            except BaseException:  # nobody could read a traceback from here, and the caller waits
                job.outcome = ("thread", errno.EINVAL, 0)
            syscalls.close_range(0, syscalls.LAST_DESCRIPTOR)
            job.done.release()

    def _perform(self, pid: int, epfd: int, tfd: int, sock_fd: int, changes: Sequence[Change]) -> _Outcome:
        own = syscalls.pidfd_open(self._pid)
        if own < 0:
            return "thread", -own, 0
        sock = syscalls.pidfd_getfd(own, sock_fd)
        if sock < 0:
            return "socket", -sock, 0
        # `own` may be a wanted number itself: it is not needed any more. From here on only the wanted numbers are
        # open, so whatever comes next gets another one.
        numbers = sorted({tfd, *(change.number for change in changes if change.number is not None)})
        for wanted in numbers:
            number = syscalls.dup2(sock, wanted)
            if number < 0:
                return "number", -number, 0
        free = 0
        for wanted in numbers:
            if wanted > free:
                syscalls.close_range(free, wanted - 1)
            free = wanted + 1
        syscalls.close_range(free, syscalls.LAST_DESCRIPTOR)
        target = syscalls.pidfd_open(pid)
        if target < 0:
            return "process", -target, 0
        epoll = syscalls.pidfd_getfd(target, epfd)
        if epoll < 0:
            return "epoll", -epoll, 0
        for done, change in enumerate(changes):
            number = tfd if change.number is None else change.number
            result = syscalls.epoll_ctl(epoll, change.operation, number, change.events, change.data)
            if result < 0 and -result != change.settled:
                return "change", -result, done
        return None


@contextmanager
def _collector_rests() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


_controller: _Controller | None = None
_starting = threading.Lock()


def _current() -> _Controller:
    global _controller
    with _starting:
        if _controller is None:
            _controller = _Controller()
        return _controller


def _forget() -> None:
    # A forked child has no such thread.
    global _controller, _starting
    _controller = None
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_forget)
