"""``python -m sockshare``, or this file as a script, is the command ``sockshare``."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` would import more before Ctrl-C waits
import os
import site
import sys

_mask = None
if __name__ == "__main__" and hasattr(_signal, "pthread_sigmask"):
    _mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGINT})

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _prefer_own_packages() -> None:
    """Import from where the interpreter and sockshare are installed before anything that the program's environment
    names: PYTHONPATH may be meant for another Python, and the working directory may hold a ``json.py``."""
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]
    installed = site.getsitepackages()
    own = {os.path.dirname(os.__file__), *installed}
    named = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    last = [path for path in named if path in sys.path and path not in own]
    sys.path[:] = [path for path in sys.path if path not in last]
    if _PACKAGES not in own:
        at = next((at for at, path in enumerate(sys.path) if path in installed), len(sys.path))
        sys.path.insert(at, _PACKAGES)
    sys.path += last


if __name__ == "__main__":
    _prefer_own_packages()
    from sockshare.cli.main import command

    command(_mask)
