"""Whether a host can run here at all."""

from __future__ import annotations

import errno
import os

from sockshare.core import platforms


def unsupported() -> str | None:
    """Why sockshare can't run on this machine, in one sentence; None if it can."""
    wrong = platforms.unsupported()
    if wrong is not None:
        return wrong
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        if getattr(error, "errno", 0) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return None  # it is there, and has no room just now
        return f"can't run sockshare: it needs pidfd_open(2), so Linux 5.3 and a Python built for it ({error})"
    return None
