"""The journal: what a broker must find again after its death, kept by the host, which survives it.

It is in memory for the broker's death, and in a file of the runtime directory (a tmpfs, hence no fsync) for the host's.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sockshare.core import versions
from sockshare.kernel import closing

log = logging.getLogger(__name__)

Record = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Journal:
    """Records by key, in memory and in the file *path*.

    A file that is not a journal of *owner* (a manager's meeting point name: a configured runtime directory outlives its
    manager, whose pids mean nothing to the next one) counts as empty; one that is torn or garbage too, or of a version
    that is no neighbour of ours, which is logged.

    Args:
        dir_fd: A descriptor of the directory of *path*, by which alone the file is reached; None: by its path.
    """

    def __init__(self, path: str, owner: str, dir_fd: int | None = None) -> None:
        self.path = path
        self.owner = owner
        self._dir_fd = dir_fd
        self._name = path if dir_fd is None else os.path.basename(path)
        self.trouble = ""  # why the file could not be written the last time
        self._records: dict[str, Record] = {}
        self._encoded: dict[str, str] = {}  # the file's entry of each record that has not changed since it was written
        self._unsaved = True  # that it is in use has to be seen by another manager that is given the same directory
        document = read(self._name, dir_fd)
        if document is None:
            return
        records = document.get("records")
        if document.get("owner") != owner:
            log.info("journal: that of an earlier manager is passed over (%s)", document.get("owner"))
        elif not versions.are_neighbours(versions.LINK, document.get("version")):
            found, known = document.get("version"), versions.understood(versions.LINK)
            log.error("journal: %s is of version %r, this host reads %s; starting with none", path, found, known)
        elif not isinstance(records, dict) or not all(isinstance(record, dict) for record in records.values()):
            log.warning("journal: %s has no records; starting with none", path)
        else:
            self._records = records

    @property
    def records(self) -> dict[str, Record]:
        """All records; a copy."""
        return dict(self._records)

    def put(self, key: str, record: Record | None) -> None:
        """Keep *record* under *key*, or forget the key (None). The file has it after the next `save`."""
        if record is None:
            self._unsaved |= self._records.pop(key, None) is not None
        elif self._records.get(key) != record:
            self._records[key] = record
            self._unsaved = True
        else:
            return
        self._encoded.pop(key, None)

    def save(self, *, anew: bool = False) -> None:
        """Write the file, if anything changed or *anew*; a failure is `trouble`: the memory serves the next broker."""
        if not self._unsaved and not anew:
            return
        aside, at = f"{self._name}~", self._dir_fd
        try:
            try:
                os.unlink(aside, dir_fd=at)  # of a host that was killed; or planted, with other modes
            except FileNotFoundError:
                pass
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(aside, flags, 0o600, dir_fd=at)
            with open(fd, "wb") as file:
                file.write(self._text().encode())
            with _last_of(self._name, at):
                # Atomic: a host that is killed here leaves the file before or the file after.
                os.replace(aside, self._name, src_dir_fd=at, dst_dir_fd=at)
        except OSError as error:
            room = "; make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            self.trouble = f"can't write {self.path}: {error.strerror}{room}; it is in memory only until then"
        else:
            self._unsaved = False
            self.trouble = ""

    def _text(self) -> str:
        # In supervisord's loop, for each change of any record: only what has changed is encoded, and by the encoder in
        # C, which json.dump() does not use.
        for key, record in self._records.items():
            if key not in self._encoded:
                self._encoded[key] = f"{_encode(key)}:{_encode(record)}"
        head = _encode({"version": versions.LINK, "owner": self.owner})
        return f'{head[:-1]},"records":{{{",".join(self._encoded[key] for key in self._records)}}}}}'


@contextmanager
def _last_of(path: str, dir_fd: int | None) -> Iterator[None]:
    """Have the file that is at *path* now given back by a thread, when it has lost its name: a disk that is told of
    each block that comes free (mount(8), discard) takes 0.1 s."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        yield
        return
    try:
        yield
    finally:
        closing.apart(lambda: os.close(fd))


def read(path: str, dir_fd: int | None = None) -> dict[str, Any] | None:
    """The document in a journal's file; None if there is none, or it is no journal (then the log says so).

    Another user's file is no journal, nor is what a link leads to.
    """
    try:
        # Not blocking: somebody's FIFO would be waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
        with open(fd, "rb") as file:
            if os.fstat(fd).st_uid not in (0, os.geteuid()):
                raise PermissionError(errno.EPERM, "it belongs to another user", path)
            document = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("journal: can't read %s, starting with none: %s", path, error)
        return None
    if not isinstance(document, dict):
        log.warning("journal: %s is not a journal; starting with none", path)
        return None
    return document
