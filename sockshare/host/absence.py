"""Why no broker answers, in files of the runtime directory: for commands, and for programs that wait for one."""

from __future__ import annotations

import logging
import os

log = logging.getLogger(__name__)


def say(directory: str, name: str, text: str | None) -> None:
    """Have the file *name* in *directory* say *text*; None: have it gone. What can't be done is logged."""
    path = os.path.join(directory, name)
    aside = f"{path}~"
    try:
        if text is None:
            _unlink(path)
            return
        _unlink(aside)
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "w") as file:
            os.fchmod(fd, 0o644)  # whatever the umask is
            file.write(text)
        os.rename(aside, path)  # whoever reads meets the sentence before or this one
    except OSError as error:
        log.warning("broker: can't write %s: %s", path, error.strerror)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
