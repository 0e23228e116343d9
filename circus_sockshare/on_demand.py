"""Patches ``Arbiter._start_watchers`` for watchers with ``on_demand``, which circus starts when a connection waits.

It starts them while ``socket_event`` is set, and waits after each watcher: after the first one the flag is taken back,
and plugins come first. Here those, and no others, are started before anybody waits. A connection to any socket starts
all of them, as circus has it; but one that says which are its own is started for those.
"""

from __future__ import annotations

import functools
import select
from typing import Any

from circus import logger
from circus.arbiter import Arbiter


def install() -> None:
    """Put ours before circus's own method, which goes on to be used; repeating it changes nothing."""
    original = Arbiter._start_watchers
    if getattr(original, "starts_on_demand", False):
        return

    @functools.wraps(original)
    def start_watchers(self: Any, watcher_iter_func: Any = None) -> Any:
        if not self.socket_event or watcher_iter_func is not None:
            return original(self, watcher_iter_func=watcher_iter_func)
        waiting = _waiting(self)
        for watcher in self.iter_watchers():
            if not watcher.on_demand or not watcher.autostart or not watcher.is_stopped():
                continue
            own = str(watcher._options.get("sockshare.sockets", "")).replace(",", " ").split()
            if not own or waiting.intersection(own):
                self.loop.add_future(watcher._start(), functools.partial(_started, watcher.name))
        return None

    start_watchers.starts_on_demand = True  # type: ignore[attr-defined]
    Arbiter._start_watchers = start_watchers


def _waiting(arbiter: Any) -> set[str]:
    """The names of the sockets on which something waits."""
    poller = select.poll()
    names = {sock.fileno(): name for name, sock in arbiter.sockets.items() if sock.fileno() >= 0}
    for number in names:
        poller.register(number, select.POLLIN)
    # One that does not listen, as with so_reuseport, reports POLLHUP (poll(2)).
    return {names[number] for number, events in poller.poll(0) if events & select.POLLIN}


def _started(name: str, done: Any) -> None:
    try:
        done.result()
    except Exception:
        logger.exception("sockshare: can't start %s on demand", name)
