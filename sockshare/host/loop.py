"""What a host needs of the event loop that it is embedded in, and how it never harms it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, Protocol

P = ParamSpec("P")


class Timer(Protocol):
    """A call that was put off."""

    def cancel(self) -> object:
        """Don't make the call, if it was not made yet."""


class Loop(Protocol):
    """The part of an event loop that a host uses; every asyncio loop is one. All from one thread."""

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> object:
        """Call *callback* whenever *fd* is readable."""

    def remove_reader(self, fd: int, /) -> object:
        """No longer."""

    def add_writer(self, fd: int, callback: Callable[[], object], /) -> object:
        """Call *callback* whenever *fd* is writable."""

    def remove_writer(self, fd: int, /) -> object:
        """No longer."""

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Call *callback* once, in *delay* seconds."""


def guarded(log: logging.Logger) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Make a function that a loop calls log what it raises, and return.

    An exception that left it would end supervisord, and orphan all that it runs.
    """

    def decorate(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def guard(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except Exception:
                log.exception("host: %s failed; going on", function.__qualname__)

        return guard

    return decorate
