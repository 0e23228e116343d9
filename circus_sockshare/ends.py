"""Patches the places where circusd learns how a process ended, and what it wrote: it keeps neither.

``Watcher.reap_process`` asks waitpid(2), and publishes what it says. The output goes to a stream, which other processes
write to as well; of one that goes nowhere nothing is known.
"""

from __future__ import annotations

import functools
import os
import select
import time
from typing import Any

from circus import logger
from circus.process import Process
from circus.stream.redirector import Redirector
from circus.watcher import Watcher
from tornado.ioloop import IOLoop

from sockshare.core.ends import Ends

#: Those of this circusd's watchers, by the names of these.
ENDS = Ends()
#: Why the last process of a watcher could not be started, by its name: circusd logs it, and keeps that a start failed.
SPAWN_ERRORS: dict[str, str] = {}

#: Reads at most of what one process wrote before it ended.
_READS = 64


def install() -> None:
    """Have what happens from now on be kept; repeating it changes nothing."""
    if getattr(Watcher.reap_process, "notes", False):
        return
    reap = Watcher.reap_process

    @functools.wraps(reap)
    def reap_process(self: Any, pid: int, status: int | None = None) -> Any:
        process = self.processes.get(pid)
        if process is None:
            return reap(self, pid, status)
        try:
            status = note(self, process, status)
        except Exception:
            logger.exception("sockshare: can't keep how %s process %s ended", self.name, pid)
        return reap(self, pid, status)

    begin = Process.__init__

    @functools.wraps(begin)
    def begin_noted(self: Any, name: str, *args: Any, **kwargs: Any) -> None:
        try:
            begin(self, name, *args, **kwargs)
        except (OSError, ValueError) as error:
            SPAWN_ERRORS[name] = str(error)
            raise
        SPAWN_ERRORS.pop(name, None)

    Process.__init__ = begin_noted
    Process.stopping = property(_is_stopping, _set_stopping)
    reap_process.notes = True  # type: ignore[attr-defined]
    Watcher.reap_process = reap_process
    Redirector.Handler = _handler(Redirector.Handler)


def _is_stopping(process: Any) -> bool:
    return bool(vars(process).get("_stopping"))


def _set_stopping(process: Any, value: bool) -> None:
    # circus takes it back as soon as the process has died.
    process._stopping = value
    process.was_stopped = was_stopped(process) or bool(value)


def was_stopped(process: Any) -> bool:
    """Whether circusd has stopped *process*, or is about to."""
    return bool(vars(process).get("was_stopped"))


def note(watcher: Any, process: Any, status: int | None = None) -> int | None:
    """Keep how *process* ended; the status of it, which is there only once."""
    if status is None:
        try:
            found, its = os.waitpid(process.pid, os.WNOHANG)
            if not found:
                return None  # it runs: what comes now waits for its end
            status = its
        except ChildProcessError:
            code = process.returncode()
            if code is not None:
                _end(watcher, process, -code if code < 0 else code << 8)
            return None
    _end(watcher, process, status)
    return status


def _end(watcher: Any, process: Any, status: int) -> None:
    read_rest(watcher, process.pid)
    ENDS.ended(process.pid, watcher.name, status, stopped=was_stopped(process), now=time.monotonic())


def read_rest(watcher: Any, pid: int) -> None:
    """Take what *pid* has written, and circusd has not read yet."""
    redirector = watcher.stream_redirector
    for fd, handler in list(redirector._active.items()) if redirector is not None else ():
        if handler.process.pid != pid:
            continue
        readable = select.poll()
        readable.register(fd, select.POLLIN)
        for _ in range(_READS):
            if fd not in redirector._active or not readable.poll(0):
                break
            handler(fd, IOLoop.READ)


class _Redirector:
    """A redirector, as a handler sees it."""

    def __init__(self, redirector: Any) -> None:
        self._redirector = redirector
        self.redirect = _Redirect(redirector)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._redirector, name)


class _Redirect:
    """Where a redirector writes to, by the name of the stream."""

    def __init__(self, redirector: Any) -> None:
        self._redirector = redirector

    def __getitem__(self, name: str) -> Any:
        write = self._redirector.redirect[name]

        def note(datamap: dict[str, Any]) -> Any:
            try:
                ENDS.wrote(datamap["pid"], name, datamap["data"])
            except Exception:
                logger.exception("sockshare: can't keep what was written")
            return write(datamap)

        return note


def _handler(original: Any) -> Any:
    class Handler(original):  # type: ignore[misc]
        def __init__(self, redirector: Any, *args: Any) -> None:
            super().__init__(_Redirector(redirector), *args)

    return Handler
