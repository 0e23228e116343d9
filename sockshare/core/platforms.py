"""Tells where sockshare can't run, before anything is imported that only Linux has."""

from __future__ import annotations

import sys

from .errors import UnsupportedPlatform


def unsupported() -> str | None:
    """Why sockshare can't run on this machine, in one sentence; None if it can."""
    if not sys.platform.startswith("linux"):
        return f"can't run sockshare: it needs Linux (this is {sys.platform})"
    if sys.version_info < (3, 10):  # noqa: UP036 - installed by other means than pip, it gets here
        return f"can't run sockshare: it needs Python 3.10 (this is {sys.version.split()[0]})"
    return None


def require_support() -> None:
    """Raise `UnsupportedPlatform` where sockshare can't run."""
    wrong = unsupported()
    if wrong is not None:
        raise UnsupportedPlatform(wrong)
