"""The log file of a process that must not die of it."""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler

FORMAT = "%(asctime)s %(levelname)s %(message)s"

#: A log says who asked for what, and how programs failed: nothing for everybody.
_MODE = 0o640


def append(path: str) -> int:
    """A descriptor of the file at *path*, to append to; made with mode 0640 if it is not there.

    Raises:
        OSError: As open(2); and it is a symbolic link that neither root nor we have made.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOFOLLOW, _MODE)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    if os.lstat(path).st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EPERM, "it is a symbolic link of another user", path)
    return os.open(path, flags, _MODE)


class LogFile(WatchedFileHandler):
    """Appends to the file at a path, whichever that is by now: it may be rotated, or removed with its directory.

    What can't be written is lost. The handler of the standard library raises it out of the call that logs.

    Args:
        own: It is in our own directory, where no administrator has made it: an older one is narrowed to mode 0640, and
            another user's is refused.
    """

    def __init__(self, path: str, *, own: bool = False) -> None:
        self._own = own
        super().__init__(path, "a")

    def _open(self) -> TextIOWrapper:
        file = open(append(self.baseFilename), "a", encoding=self.encoding, errors=self.errors)
        if self._own:
            try:
                status = os.fstat(file.fileno())
                if status.st_uid not in (0, os.geteuid()):
                    raise PermissionError(errno.EPERM, "it belongs to another user", self.baseFilename)
                if stat.S_IMODE(status.st_mode) & ~_MODE:
                    os.fchmod(file.fileno(), _MODE)
            except BaseException:
                file.close()
                raise
        return file

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*."""
        try:
            super().emit(record)
        except OSError:
            pass

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose *record*."""


class Stream(logging.Handler):
    """Writes to a descriptor that may be a pipe which its reader, a manager that is stopped, does not empty.

    What it has no room for is lost: a write that waits would hold up whoever logs. The next record says how many were.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lost = 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*."""
        try:
            lost = f"\n({self._lost} records before this one were lost: nobody read them)\n" if self._lost else ""
            data = f"{lost}{self.format(record)}\n".encode(errors="replace")
            # A pipe is writable if it takes so much without waiting (pipe(7)); O_NONBLOCK would be all its writers'.
            for start in range(0, len(data), select.PIPE_BUF):
                if not any(events & select.POLLOUT for _, events in self._poll.poll(0)):
                    self._lost += 1
                    return
                os.write(self._fd, data[start : start + select.PIPE_BUF])
            self._lost = 0
        except (OSError, ValueError, TypeError):
            self._lost += 1


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
    return Stream(2)
