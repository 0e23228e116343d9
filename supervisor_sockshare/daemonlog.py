"""Our log is supervisord's."""

from __future__ import annotations

import logging
from typing import Any


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
