"""The log file of a process that must not die of it."""

from __future__ import annotations

import logging
import os
import stat
import sys
from logging.handlers import WatchedFileHandler

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class LogFile(WatchedFileHandler):
    """Appends to the file at a path, whichever that is by now: it may be rotated, or removed with its directory.

    What can't be written is lost. The handler of the standard library raises it out of the call that logs.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*."""
        try:
            super().emit(record)
        except OSError:
            pass

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose *record*."""


def sparingly() -> None:
    """Have the records of this process made without what `FORMAT` does not show (logging HOWTO, Optimization): that is
    half of what one costs."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    setattr(logging, "logAsyncioTasks", False)  # noqa: B010  since Python 3.12
    logging._srcfile = None


def of_stderr() -> logging.Handler:
    """Where our standard error goes: a file by its path, so that it may be rotated; anything else as it is."""
    try:
        path, own = os.readlink("/proc/self/fd/2"), os.fstat(2)
        if stat.S_ISREG(own.st_mode) and os.path.samestat(os.stat(path), own):
            return LogFile(path)
    except OSError:
        pass
    return logging.StreamHandler(sys.stderr)
