"""What a running ``sockshare reload`` means to circus's own commands; patches ``Watcher`` and ``Arbiter``.

A process that is started beside the old ones is one too many for circus, which counts: so it is added to
``numprocesses``, and remembered here as *extra*. ``incr``, ``decr``, ``set numprocesses`` and ``reloadconfig`` change
how many there are besides. Are there more, they are started at once; are there fewer, some are stopped when the new
process has proven itself, or is gone: circus stops the oldest first, which are those to go back to. A ``reload`` of
circus's own would stop what the running one watches: it is refused.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

from circus.arbiter import Arbiter
from circus.exc import MessageError
from circus.util import synchronized
from circus.watcher import Watcher

from .holding import host_watcher

#: Of so many processes that circus told to end it is remembered, and for so many seconds.
_MOST_TOLD = 1000
_TOLD_FOR = 60.0
#: The signals by which a process is told to end, besides its watcher's own.
_ENDS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGQUIT)
#: The options by whose change circus reloads a watcher.
_RELOADS = frozenset({"working_dir", "uid", "gid", "shell", "env", "cmd", "args", "max_age", "max_age_variance"})

_extra: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_draining: dict[int, tuple[Any, Any]] = {}  # old processes that have yet to end, by id(), and their watchers
_probation: dict[int, str] = {}  # the new processes, and their watchers' names
_told: OrderedDict[int, float] = OrderedDict()  # the pids that circus told to end, and when (monotonic)


class Processes(dict[int, Any]):
    """A watcher's processes, from which circus may take one that is not there any more.

    ``Watcher.manage_processes`` waits for the end of those that it stops, and only then takes them out.
    """

    def pop(self, pid: int, default: Any = None) -> Any:
        """The process *pid*, which is taken out, or *default*."""
        return super().pop(pid, default)


def extra(watcher: Any) -> int:
    """How many of the ``numprocesses`` of *watcher* are there for a reload only."""
    return _extra.get(watcher, 0)


def wanted(watcher: Any) -> int:
    """How many processes *watcher* has outside of a reload."""
    return int(watcher.numprocesses) - extra(watcher)


def begin(watcher: Any) -> None:
    """Let *watcher* have one process more, for a reload."""
    watcher.numprocesses += 1
    _extra[watcher] = extra(watcher) + 1


def withdraw(watcher: Any) -> None:
    """Undo `begin`: there is no such process."""
    watcher.numprocesses -= 1
    _extra[watcher] = extra(watcher) - 1


def settle(watcher: Any, count: int, size: int | None, *, proven: bool) -> int:
    """Let *watcher* have *count* processes; how many those are after all.

    Args:
        size: As many as it has outside of a reload, by what its reload knows; where that was changed meanwhile, the
            change counts. None: *count* counts whatever was changed.
        proven: Whether what stays may be stopped down to what is wanted.
    """
    if not isinstance(watcher.processes, Processes):
        watcher.processes = Processes(watcher.processes)
    now = count if size is None else wanted(watcher)
    if size is not None:
        count = max((now if proven else max(now, size)) + count - size, 0)
    watcher.numprocesses, _extra[watcher] = count, count - now
    if proven and count <= now:  # otherwise there are others, of replacements that overlap
        for pid in [pid for pid, name in _probation.items() if name == watcher.name]:
            del _probation[pid]
    return count


def draining(watcher: Any, process: Any) -> None:
    """*process* of *watcher* is about to end."""
    _draining[id(process)] = (process, watcher)


def ended(process: Any) -> None:
    """*process*, which was `draining`, has ended."""
    _draining.pop(id(process), None)


def is_running(watcher: Any) -> bool:
    """Whether a reload of *watcher* runs: a new process has yet to prove itself, or an old one to end."""
    return extra(watcher) > 0 or any(its is watcher and one.is_alive() for one, its in _draining.values())


def told_to_end() -> list[int]:
    """The pids of the processes that circus itself told to end, a moment ago."""
    now = time.monotonic()
    return [pid for pid, when in _told.items() if now - when < _TOLD_FOR]


def on_probation(watcher: Any, pid: int) -> None:
    """Let the death of *pid*, a new process of *watcher*, be its reload's to judge, and nobody else's."""
    _probation[pid] = watcher.name


def forget(pid: int) -> None:
    """What *pid* was told was not circus's own doing."""
    _told.pop(pid, None)


def install() -> None:
    """Put ours before circus's own methods, which go on to be used; repeating it changes nothing."""
    if getattr(Watcher.reload, "knows_sockshare", False):
        return
    set_numprocesses, set_opt, reload = Watcher.set_numprocesses, Watcher.set_opt, Watcher.reload
    reload_all, send_signal, notify_event = Arbiter.reload, Watcher.send_signal, Watcher.notify_event
    set_number = synchronized("watcher_set_opt")(_set_number)  # as circus's own

    @functools.wraps(set_numprocesses)
    def count_ours(self: Any, np: int) -> Any:
        if not extra(self):
            return set_numprocesses(self, np)
        # `incr` and `decr` have counted from numprocesses, in which the new ones are.
        absolute = self.arbiter._exclusive_running_command == "arbiter_reload_config"
        number = _change(self, np if absolute else np - extra(self))
        return asyncio.ensure_future(_manage(self, number))

    @functools.wraps(set_opt)
    def set_unless_reloading(self: Any, key: str, val: Any) -> Any:
        if key in _RELOADS:
            _refuse([self], f"set {key} of {self.name}, for which circus would reload it")
        if key != "numprocesses" or not extra(self):
            return set_opt(self, key, val)
        return set_number(self, int(val))

    @functools.wraps(reload)
    def reload_unless_reloading(self: Any, graceful: bool = True, sequential: bool = False) -> Any:
        if graceful and not self.send_hup:
            _refuse([self], f"reload {self.name}")
        return reload(self, graceful=graceful, sequential=sequential)

    @functools.wraps(reload_all)
    def reload_all_unless_reloading(self: Any, graceful: bool = True, sequential: bool = False) -> Any:
        if graceful:
            _refuse([one for one in self.watchers if not one.send_hup], "reload all")
        return reload_all(self, graceful=graceful, sequential=sequential)

    @functools.wraps(send_signal)
    def note_and_send(self: Any, pid: int, signum: int) -> Any:
        # In its own round circus ends what is too many, as in a crash loop: that is nobody's stop.
        by_itself = self.arbiter._exclusive_running_command == "manage_watchers"
        if pid in self.processes and signum in (*_ENDS, self.stop_signal) and not by_itself:
            _told[pid] = time.monotonic()
            _told.move_to_end(pid)
            if len(_told) > _MOST_TOLD:
                _told.popitem(last=False)
        return send_signal(self, pid, signum)

    @functools.wraps(notify_event)
    def notify(self: Any, topic: str, msg: Any) -> Any:
        # circus's plugins stop a watcher whose processes crash (Flapping), which would end the old ones, too.
        if topic == "reap" and _probation.get(msg.get("process_pid")) == self.name:
            topic = "kill"
        return notify_event(self, topic, msg)

    reload_unless_reloading.knows_sockshare = True  # type: ignore[attr-defined]
    Watcher.set_numprocesses = count_ours
    Watcher.set_opt = set_unless_reloading
    Watcher.reload = reload_unless_reloading
    Arbiter.reload = reload_all_unless_reloading
    Watcher.send_signal = note_and_send
    Watcher.notify_event = notify


def _refuse(watchers: Any, what: str) -> None:
    # Without our plugin there is nobody who would end it.
    running = [one.name for one in watchers if is_running(one) and host_watcher(one.arbiter) is not None]
    if running:
        raise MessageError(
            f"can't {what}: a sockshare reload of {', '.join(running)} is running; "
            "wait for its end (`sockshare status` shows it)"
        )


def _change(watcher: Any, number: int) -> int:
    """Let *watcher* have *number* processes outside of the reload that runs."""
    number = max(number, 0)
    if watcher.singleton and number > 1:
        raise ValueError("Singleton watcher has a single process")
    change = number - wanted(watcher)
    if change > 0:
        watcher.numprocesses += change
    else:
        _extra[watcher] = extra(watcher) - change
    return number


def _set_number(watcher: Any, number: int) -> int:
    _change(watcher, number)
    watcher.notify_event("updated", {"time": time.time()})
    return 0  # what is to be done next, see `Watcher.set_opt`


async def _manage(watcher: Any, number: int) -> int:
    await watcher.manage_processes()
    return number
