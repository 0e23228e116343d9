"""The journal: what a broker must find again after its death, kept by the host, which survives it.

It is in memory for the broker's death, and in a file of the runtime directory (a tmpfs, hence no fsync) for the host's.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

log = logging.getLogger(__name__)

Record = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Journal:
    """Records by key, in memory and in the file *path*.

    A file that is not a journal of *owner* (a manager's meeting point name: a configured runtime directory outlives its
    manager, whose pids mean nothing to the next one) counts as empty; one that is torn or garbage too, which is logged.
    """

    def __init__(self, path: str, owner: str) -> None:
        self.path = path
        self.owner = owner
        self._records: dict[str, Record] = {}
        self._encoded: dict[str, str] = {}  # the file's entry of each record that has not changed since it was written
        self._unsaved = True  # that it is in use has to be seen by another manager that is given the same directory
        document = read(path)
        if document is None:
            return
        records = document.get("records")
        if document.get("owner") != owner:
            log.info("journal: that of an earlier manager is passed over (%s)", document.get("owner"))
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
        """Write the file, if anything changed or *anew*; a failure is logged: the memory serves the next broker."""
        if not self._unsaved and not anew:
            return
        aside = f"{self.path}~"
        try:
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "wb") as file:
                file.write(self._text().encode())
            # Atomic: a host that is killed here leaves the file before or the file after.
            os.replace(aside, self.path)
        except OSError as error:
            log.error("journal: can't write %s: %s", self.path, error.strerror)
        else:
            self._unsaved = False

    def _text(self) -> str:
        # In supervisord's loop, for each change of any record: only what has changed is encoded, and by the encoder in
        # C, which json.dump() does not use.
        for key, record in self._records.items():
            if key not in self._encoded:
                self._encoded[key] = f"{_encode(key)}:{_encode(record)}"
        head = _encode({"version": 1, "owner": self.owner})
        return f'{head[:-1]},"records":{{{",".join(self._encoded[key] for key in self._records)}}}}}'


def read(path: str) -> dict[str, Any] | None:
    """The document in a journal's file; None if there is none, or it is no journal (then the log says so)."""
    try:
        with open(path, "rb") as file:
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
