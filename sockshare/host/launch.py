"""Finds the command ``sockshare`` of a program: the manager's own, whatever PATH either has."""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Sequence

_PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_NAMES = ("sockshare", os.path.join(os.path.dirname(sys.executable), "sockshare"))


def launched(words: Sequence[str]) -> list[str] | None:
    """What starts the command line *words*, if that is of ``sockshare``; None if it is not.

    Python itself, not the script: a shell runs that, which may set PWD, and leaves out variables whose names are none
    for a shell. The environment is the program's, so Python takes nothing from it (-E), nor from a user's packages
    (-s), unless sockshare is there.
    """
    if not words or words[0] not in _NAMES:
        return None
    own = () if site.ENABLE_USER_SITE and not _PACKAGES.startswith(sys.prefix) else ("-s",)
    return [sys.executable, "-E", *own, os.path.join(_PACKAGES, "sockshare", "__main__.py"), *words[1:]]
