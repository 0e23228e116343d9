"""Whether a host can run here at all."""

from __future__ import annotations

import errno
import os
import sys


def unsupported() -> str | None:
    """Why sockshare can't run on this machine, in one sentence; None if it can."""
    if not sys.platform.startswith("linux"):
        return f"can't run sockshare: it needs Linux (this is {sys.platform})"
    if sys.version_info < (3, 10):  # noqa: UP036 - installed by other means than pip, it gets here
        return f"can't run sockshare: it needs Python 3.10 (this is {sys.version.split()[0]})"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        if getattr(error, "errno", 0) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return None  # it is there, and has no room just now
        return f"can't run sockshare: it needs pidfd_open(2), so Linux 5.3 and a Python built for it ({error})"
    return None
