"""Two more XML-RPC interfaces for a supervisord under test: one measures its loop, the other breaks our plugin.

``[rpcinterface:loop] supervisor.rpcinterface_factory = tests.support.interfaces:make_loop`` and ``...:make_faults``.
"""

from __future__ import annotations

import time
from typing import Any


class Loop:
    """How long supervisord is away from its poller."""

    def __init__(self, supervisord: Any) -> None:
        self.worst = 0.0
        self._returned = 0.0
        poller = supervisord.options.poller
        original = poller.poll

        def poll(timeout: float) -> Any:
            if self._returned:
                self.worst = max(self.worst, time.monotonic() - self._returned)
            # The plugin's wrapper runs what is due inside of the one that it wraps, or outside: both are counted.
            found = original(timeout)
            self._returned = time.monotonic()
            return found

        poller.poll = poll

    def worstGap(self) -> float:
        """Return the longest time between two polls, and begin anew

        @return double seconds
        """
        worst, self.worst = self.worst, 0.0
        return worst


class Faults:
    """Exceptions out of any method of the plugin's objects."""

    def __init__(self, supervisord: Any) -> None:
        self._undo: list[tuple[Any, str]] = []

    def breakMethod(self, path: str) -> bool:
        """Let ``object.method``, from the plugin on, raise from now on

        @param string path such as _twins.start
        @return boolean always true
        """
        from supervisor_sockshare.hooks import plugin

        *names, method = path.split(".")
        target: Any = plugin()
        for name in names:
            target = getattr(target, name)

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(f"injected into {path}")

        # On a class whose attributes are fixed this would raise; all of ours take it.
        setattr(target, method, fail)
        self._undo.append((target, method))
        return True

    def mend(self) -> bool:
        """Undo every breakMethod

        @return boolean always true
        """
        for target, method in self._undo:
            delattr(target, method)
        self._undo.clear()
        return True

    def say(self, text: str) -> bool:
        """Send *text* to the broker over the link, as it is

        @param string text anything
        @return boolean always true
        """
        from supervisor_sockshare.hooks import plugin

        link: Any = plugin().host._link  # type: ignore[union-attr]
        link._sock.send(text.encode())
        return True


def make_loop(supervisord: Any, **config: str) -> Loop:
    """The factory of ``Loop``."""
    return Loop(supervisord)


def make_faults(supervisord: Any, **config: str) -> Faults:
    """The factory of ``Faults``."""
    return Faults(supervisord)
