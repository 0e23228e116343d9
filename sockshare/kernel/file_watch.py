"""Tells when a file gets or loses a name, or other permissions (inotify(7))."""

from __future__ import annotations

import ctypes
import os

_IN_ATTRIB, _IN_MOVE_SELF, _IN_DELETE_SELF = 0x4, 0x800, 0x400  # linux/inotify.h
_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """A descriptor that is readable when something has changed; of what, is not told.

    Raises:
        OSError: As inotify_init(2).
    """

    def __init__(self) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def add(self, path: str) -> None:
        """Watch the file that is at *path* now, whatever its names will be; again changes nothing.

        Raises:
            OSError: As inotify_add_watch(2).
        """
        # A hard link that is made or removed changes st_nlink, which is an attribute. (A look at the directory would
        # tell of every file in it, and /tmp and /run have many.)
        mask = _IN_ATTRIB | _IN_MOVE_SELF | _IN_DELETE_SELF
        _checked(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask))

    def read(self) -> None:
        """Take what was told: nothing more is readable."""
        try:
            while os.read(self._fd, 1 << 14):
                pass
        except BlockingIOError:
            pass

    def __enter__(self) -> FileWatch:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch nothing any more."""
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
