"""Patches the two places where supervisord learns how a process ended, and what it wrote: it keeps neither.

``Subprocess.finish`` has the status of waitpid(2), of which supervisord keeps an exit status at most. Of the output
only a file is left, which other processes write to as well.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

from supervisor.dispatchers import POutputDispatcher
from supervisor.process import Subprocess

from sockshare.core.ends import Ends

from .places import name_of, program_of, role_of

log = logging.getLogger(__name__)

#: Those of this supervisord's programs. They outlive ``supervisorctl reload``, as this module does.
ENDS = Ends()


def install() -> None:
    """Have what happens from now on be kept; repeating it changes nothing."""
    if getattr(Subprocess, "knows_sockshare", False):
        return
    Subprocess.knows_sockshare = True
    finish, write = Subprocess.finish, POutputDispatcher._log

    @functools.wraps(finish)
    def finish_noted(self: Any, pid: int, sts: int) -> Any:
        stopped = bool(self.killing)  # unset by what follows, which reads the rest of the output first
        try:
            return finish(self, pid, sts)
        finally:
            try:
                if program_of(self) is not None:
                    # What has no place yet, or none any more, is no restart of one that has.
                    name = name_of(self) if role_of(self) is None else ""
                    ENDS.ended(pid, name, sts, stopped=stopped, now=time.monotonic())
            except Exception:
                log.exception("ends: can't keep how pid %s ended", pid)

    @functools.wraps(write)
    def write_noted(self: Any, data: Any) -> Any:
        try:
            process = self.process
            if data and process.pid and program_of(process) is not None:
                ENDS.wrote(process.pid, self.channel, data if isinstance(data, bytes) else str(data).encode())
        except Exception:
            log.exception("ends: can't keep what was written")
        return write(self, data)

    Subprocess.finish = finish_noted
    POutputDispatcher._log = write_noted
