"""Why no broker answers, in files of the runtime directory: for commands, and for programs that wait for one."""

from __future__ import annotations

import logging

from sockshare.kernel.directory import Directory

log = logging.getLogger(__name__)


def say(directory: Directory, name: str, text: str | None) -> None:
    """Have the file *name* in *directory* say *text*; None: have it gone. What can't be done is logged."""
    try:
        if text is None:
            directory.unlink(name)
        else:
            directory.write(name, text, 0o644)  # whoever reads meets the sentence before or this one
    except OSError as error:
        log.warning("broker: can't write %s: %s", name, error.strerror)
