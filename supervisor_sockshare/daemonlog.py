"""Our log is supervisord's."""

from __future__ import annotations

import logging
import os
import stat
import time
from typing import Any


def append(path: str | None, text: str) -> None:
    """Write *text* to supervisord's log at *path*, if that is there: for one that ends before it has opened it."""
    try:
        if path is None or not stat.S_ISREG(os.stat(path).st_mode):
            return
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        with open(fd, "a", errors="replace") as file:
            file.writelines(f"{when},000 CRIT sockshare: can't start: {line}\n" for line in text.splitlines())
    except OSError:
        pass  # its disk may be full; the mistake itself is said on stderr


class DaemonLog(logging.Handler):
    """Writes what our modules log into the log of the supervisord whose ``options`` it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.options: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        logger = getattr(self.options, "logger", None)
        if logger is None:
            return
        try:
            text = "sockshare: " + self.format(record).replace("%", "%%")
            level = record.levelno
            write = logger.error if level >= logging.ERROR else logger.warn if level >= logging.WARNING else logger.info
            write(text)
        except Exception:
            pass  # logging's own way with it writes to a stderr that a daemon may not have

    def take(self, *packages: str) -> None:
        """Have everything that *packages* log, and nobody else have it."""
        for package in packages:
            logger = logging.getLogger(package)
            logger.setLevel(logging.INFO)
            logger.propagate = False
            logger.addHandler(self)
