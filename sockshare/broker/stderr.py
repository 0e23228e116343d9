"""The last lines that a child wrote to its standard error, where the manager keeps them in a file."""

from __future__ import annotations

import os

_MOST = 4096  # bytes
_LINES = 10


class StderrTail:
    """What is appended to the file at *path* from *offset* on; by default, from now on."""

    def __init__(self, path: str | None, offset: int | None = None) -> None:
        self.path = path
        self.offset = 0 if offset is None else offset
        if path is not None and offset is None:
            try:
                self.offset = os.stat(path).st_size
            except OSError:
                self.offset = 0

    def read(self) -> str:
        """The last lines, at most ten; empty when there are none, or no file."""
        if self.path is None:
            return ""
        try:
            # A path may lead to a pipe, or a terminal: opened so it is not waited for, and it can't be sought in.
            with open(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                start = self.offset if size >= self.offset else 0  # it was rotated
                file.seek(max(start, size - _MOST))
                text = file.read(_MOST).decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-_LINES:])
