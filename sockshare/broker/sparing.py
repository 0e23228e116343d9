"""A log that strangers can't fill: the door and the endpoint are open to every process of the machine."""

from __future__ import annotations

import logging
from collections.abc import Callable

_MOST = 50
_SECONDS = 10.0


class Sparing(logging.Filter):
    """Lets so many warnings of one kind through in a while, and says with the next one how many were left out.

    One kind is what one line of code says. Only what is at least a warning is counted: the rest is our own doing.
    """

    def __init__(self, most: int = _MOST, seconds: float = _SECONDS, clock: Callable[[], float] | None = None) -> None:
        super().__init__()
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._seen: dict[object, tuple[float, int]] = {}  # since when, how many

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        if record.levelno < logging.WARNING:
            return True
        now = record.created if self._clock is None else self._clock()
        kind = (record.pathname, record.lineno)
        since, count = self._seen.get(kind, (now, 0))
        if now - since >= self._seconds:
            if count > self._most:
                record.msg = f"{record.getMessage()} ({count - self._most} like it were left out before)"
                record.args = None
            since, count = now, 0
        self._seen[kind] = since, count + 1
        return count < self._most
