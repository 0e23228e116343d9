"""Two more XML-RPC interfaces for a supervisord under test: one measures its loop, the other breaks our plugin.

``[rpcinterface:loop] supervisor.rpcinterface_factory = tests.support.interfaces:make_loop`` and ``...:make_faults``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

from supervisor_sockshare import polling


class Away(NamedTuple):
    """A span in which supervisord did not look at its descriptors, in seconds."""

    own: float  # what it computed, or waited for
    wall: float  # and what it would have run for, had others left it a processor


def run_delay() -> float:
    """Seconds that this process was runnable and did not run (Documentation/scheduler/sched-stats.rst)."""
    try:
        with open("/proc/self/schedstat", "rb", buffering=0) as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0  # this kernel does not tell: then all of it counts


class Loop:
    """How long supervisord is away from its poller, and our callbacks' part of it."""

    def __init__(self, supervisord: Any) -> None:
        self._worst = Away(0.0, 0.0)
        self._worst_callback = Away(0.0, 0.0)
        self._left: tuple[float, float] | None = None
        # The call of the kernel itself: our wrapper of `poll` runs what is due after it.
        poller = supervisord.options.poller
        original = poller._poll_fds

        def poll_fds(timeout: float) -> Any:
            if self._left is not None:
                self._worst = max(self._worst, self._since(self._left))
            found = original(timeout)
            self._left = (time.monotonic(), run_delay())
            return found

        poller._poll_fds = poll_fds
        call = polling._call

        def timed(callback: Callable[[], object] | None) -> None:
            began = (time.monotonic(), run_delay())
            call(callback)
            self._worst_callback = max(self._worst_callback, self._since(began))

        polling._call = timed

    @staticmethod
    def _since(then: tuple[float, float]) -> Away:
        wall = time.monotonic() - then[0]
        return Away(wall - (run_delay() - then[1]), wall)

    def worst(self) -> list[list[float]]:
        """Return the longest time between two polls, and in one of our callbacks, and begin anew

        @return array each [without, with] the time that others had the processor, in seconds
        """
        now = self._worst if self._left is None else self._since(self._left)
        worst, callback = max(self._worst, now), self._worst_callback
        self._worst = self._worst_callback = Away(0.0, 0.0)
        return [list(worst), list(callback)]


class Faults:
    """Exceptions out of any method of the plugin's objects."""

    _undo: ClassVar[list[tuple[Any, str]]] = []  # the plugin outlives a `reload`, and so does what is broken

    def methods(self, path: str) -> list[str]:
        """Return the methods of an object of the plugin that are not guarded themselves

        @param string path such as _twins, or nothing for the plugin
        @return array paths, as breakMethod takes them
        """
        owner = type(self._find(path.split(".") if path else []))
        return [
            f"{path}.{name}" if path else name
            for name, value in vars(owner).items()
            # A guard that is replaced guards nothing; and what is broken has been made already.
            if isinstance(value, FunctionType) and not hasattr(value, "__wrapped__") and name != "__init__"
        ]

    @staticmethod
    def _find(names: list[str]) -> Any:
        from supervisor_sockshare.hooks import plugin

        target: Any = plugin()
        for name in names:
            target = getattr(target, name)
        return target

    def breakMethod(self, path: str) -> bool:
        """Let ``object.method``, from the plugin on, raise from now on

        @param string path such as _twins.start
        @return boolean always true
        """
        *names, method = path.split(".")
        target = self._find(names)

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
    return Faults()
