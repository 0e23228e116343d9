"""circus's own commands made lossless, for watchers with our hook (`circus_sockshare.hooks`); runs inside circusd.

Theory of operation. circus stops a process in favour of others in one place, ``Watcher.kill_process``: for a reload,
for a smaller ``numprocesses`` and for ``max_age``. There such a process is *held* first: it has no signal, circus waits
as it waits for one that drains, and the broker is told (the event ``held``). The broker claims it, and when the new
process serves, and the old one has no connections coming in any more, it has it released: to be stopped, with the
whole ``graceful_timeout`` before it, or to be kept, when the new process failed.

Nothing here may keep circus from stopping things: a process whose watcher is stopped, that nobody claims or that nobody
releases in time, is stopped as if there were no hook.
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from circus import logger
from circus.arbiter import Arbiter
from circus.process import DEAD_OR_ZOMBIE, UNEXISTING
from circus.watcher import Watcher

#: Seconds between two looks at a held process, and at who holds it. circus looks as often at one that it stops.
_LOOK_EVERY = 0.1
#: Seconds that the broker has to claim a process. It does within milliseconds, or it is not there; the host may be
#: started anew meanwhile, and it a second later.
_CLAIM_WITHIN = 10.0
#: Seconds until one that has reached its max_age, and was kept because the new one failed, is tried again: circusd does
#: nothing else meanwhile.
_EXPIRES_AGAIN_AFTER = 60.0

#: circus's own, to which everything comes in the end.
stop_process = Watcher.kill_process
_reload = Watcher._reload
_remove_expired = Watcher.remove_expired_processes


def install() -> None:
    """Put ours before circus's own methods, which go on to be used; repeating it changes nothing."""
    if getattr(Watcher.kill_process, "holds", False):
        return

    @functools.wraps(stop_process)
    def kill_process(self: Any, process: Any, stop_signal: Any = None, graceful_timeout: Any = None) -> Any:
        if not _is_to_be_held(self, process, stop_signal):
            return stop_process(self, process, stop_signal, graceful_timeout)
        return _future(_Held(self, process).stop_or_keep(stop_signal, graceful_timeout))

    @functools.wraps(_reload)
    def reload(self: Any, graceful: bool = True, sequential: bool = False) -> Any:
        if not graceful or self.is_stopped() or self.send_hup or not _hands_over(self):
            return _reload(self, graceful=graceful, sequential=sequential)
        return _future(_replace_all(self, sequential))

    @functools.wraps(_remove_expired)
    def remove_expired_processes(self: Any) -> Any:
        return _future(_replace_expired(self)) if _hands_over(self) else _remove_expired(self)

    stop = Arbiter.stop

    @functools.wraps(stop)
    def stop_after_held(self: Any) -> Any:
        return stop(self) if not _held else _future(_stop_after_held(self, stop))

    Arbiter.stop = stop_after_held
    kill_process.holds = True  # type: ignore[attr-defined]
    Watcher.kill_process = kill_process
    Watcher._reload = reload
    Watcher.remove_expired_processes = remove_expired_processes


def _future(work: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
    return asyncio.ensure_future(work)  # begun by the loop, also for the callers that wait for nothing


# What is held.


def is_held(pid: int) -> bool:
    """Whether *pid* is held."""
    return pid in _held


def newcomer_of(pid: int) -> int | None:
    """The pid of the process that was started in the place of *pid*, if there is one."""
    return _newcomers.get(pid)


def claim(pid: int) -> bool:
    """Promise a `release` of *pid*; false when it is not held."""
    held = _held.get(pid)
    if held is not None:
        held.claimed = True
        _unclaimed_since.pop(pid, None)
    return held is not None


def release(pid: int, *, keep: bool, stop_signal: int | None = None) -> bool:
    """Keep *pid*, or stop it, with *stop_signal* or else its watcher's; false when it is not held."""
    held = _held.get(pid)
    if held is not None:
        held.stop_signal = stop_signal
        if not held.kept.done():
            held.kept.set_result(keep)
    return held is not None


_held: dict[int, _Held] = {}
_newcomers: dict[int, int] = {}  # old pid: new pid; what is held a second time still has the same
_unclaimed_since: dict[int, float] = {}  # a pid that was held before, and claimed by nobody
_kept: dict[int, float] = {}  # a pid that was released to be kept, and when (monotonic)
_stopping = False  # circusd is about to end


class _Held:
    """A process that circus wants to stop."""

    def __init__(self, watcher: Any, process: Any) -> None:
        self.claimed = False
        self.stop_signal: int | None = None
        self.kept: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._watcher = watcher
        self._process = process
        _held[process.pid] = self
        logger.info("sockshare: %s process %s is held back from its stop", watcher.name, process.pid)

    def give_up(self) -> None:
        """Keep it for now: something is to happen that makes no difference between old and new."""
        if not self.kept.done():
            self.kept.set_result(True)

    async def stop_or_keep(self, stop_signal: Any, graceful_timeout: Any) -> bool:
        """What ``kill_process`` returns: whether it was stopped."""
        pid = self._process.pid
        try:
            keep = await self._decide()
        except Exception:  # circus's insides may be others than we know
            logger.exception("sockshare: can't hold pid %s back", pid)
            keep = False
        finally:
            del _held[pid]
        if keep or pid not in self._watcher.processes:
            return False
        signum = stop_signal if self.stop_signal is None else self.stop_signal
        return bool(await stop_process(self._watcher, self._process, signum, graceful_timeout))

    async def _decide(self) -> bool:
        watcher, process = self._watcher, self._process
        began = time.monotonic()
        since = _unclaimed_since.setdefault(process.pid, began)
        while not self.kept.done():
            if not self.claimed:
                watcher.notify_event("held", {"process_pid": process.pid, "time": time.time()})
            await asyncio.wait([self.kept], timeout=_LOOK_EVERY)
            if self.kept.done():
                break
            now = time.monotonic()
            host = host_watcher(watcher.arbiter)
            why = ""
            if _is_dead(process) or not watcher.is_active() or host is None or _is_ending(watcher.arbiter):
                why = "nobody has to hold it any more"
            elif not self.claimed and now - since >= _CLAIM_WITHIN:
                why = f"no broker took it up within {_CLAIM_WITHIN:g} s"
            elif now - began >= watcher.graceful_timeout:
                why = f"it was not released within graceful_timeout, {watcher.graceful_timeout:g} s"
            elif all(map(_is_dead, host.processes.values())):
                # Only when this command is over does circus start the host again. Then it stops this process once more.
                logger.warning("sockshare: the host is gone; %s process %s goes on for now", watcher.name, process.pid)
                return True
            if why:
                logger.warning("sockshare: %s process %s is stopped: %s", watcher.name, process.pid, why)
                _unclaimed_since.pop(process.pid, None)
                _newcomers.pop(process.pid, None)
                return False
        keep = self.kept.result()
        _newcomers.pop(process.pid, None)
        if keep:
            _kept[process.pid] = time.monotonic()
        return keep


def _is_to_be_held(watcher: Any, process: Any, stop_signal: Any) -> bool:
    try:
        return bool(
            _hands_over(watcher)
            and stop_signal in (None, watcher.stop_signal)
            # Held already: this is somebody who means this very process (`circusctl kill`).
            and process.pid not in _held
            and not process.stopping
            and not _is_dead(process)
            and (_newcomers.get(process.pid) in watcher.processes or process in _surplus(watcher))
        )
    except Exception:  # circus's insides may be others than we know
        logger.exception("sockshare: can't tell whether pid %s is to be handed over", process.pid)
        return False


def _hands_over(watcher: Any) -> bool:
    hook = watcher.hooks.get("before_signal")
    return bool(
        getattr(hook, "hands_over", False)
        and watcher.is_active()
        and int(watcher.stop_signal) != signal.SIGKILL
        and not _is_ending(watcher.arbiter)
        and host_watcher(watcher.arbiter) is not None
    )


def _is_ending(arbiter: Any) -> bool:
    return bool(_stopping or arbiter._stopping or arbiter._restarting)


def host_watcher(arbiter: Any) -> Any:
    """The watcher of our plugin, if it runs, or is about to run again."""
    if "sockshare" not in arbiter.ctrl.commands:
        return None
    for watcher in arbiter.watchers:
        if watcher.name.startswith("plugin:") and "circus_sockshare." in watcher.cmd and not watcher.is_stopped():
            return watcher
    return None


def _surplus(watcher: Any) -> list[Any]:
    """The processes that are too many, as ``manage_processes`` finds them."""
    return sorted(watcher.processes.values(), key=lambda p: p.started, reverse=True)[watcher.numprocesses :]


def _is_dead(process: Any) -> bool:
    return process.status in (DEAD_OR_ZOMBIE, UNEXISTING)


async def _stop_after_held(arbiter: Any, stop: Callable[[Any], Any]) -> None:
    """``Arbiter.stop``: circus refuses it while a command runs, SIGTERM without a word; one that holds is cut short."""
    global _stopping
    _stopping = True
    while arbiter._exclusive_running_command is not None:
        for held in _held.values():
            held.give_up()
        await asyncio.sleep(_LOOK_EVERY)
    await stop(arbiter)


# What circus does otherwise.


def spawn(watcher: Any) -> Any:
    """One more process of *watcher*; None if circus could not start it, or a hook forbade it."""
    before = set(watcher.processes)
    retries = watcher.max_retry
    # Without a limit circus tries again in a busy loop, and circusd does nothing else any more.
    watcher.max_retry = 1 if retries == -1 else retries
    try:
        watcher.spawn_process()
    finally:
        watcher.max_retry = retries
    return next((process for pid, process in watcher.processes.items() if pid not in before), None)


async def _replace_all(watcher: Any, sequential: bool) -> None:
    """``Watcher._reload``: new processes beside the old ones, all at once or one by one.

    circus's own one-by-one stops a process before it starts the next, and so has a moment with one too few.
    """
    if watcher.prereload_fn is not None:
        watcher.prereload_fn(watcher)
    old = sorted(watcher.get_active_processes(), key=lambda p: p.started)
    if sequential:
        for process in old:
            if not _pair(process, spawn(watcher)):
                break
            if not await watcher.kill_process(process) and not _is_dead(process):
                break  # the new one failed, and so would the next
            watcher.reap_process(process.pid)
            await asyncio.sleep(watcher.warmup_delay)
    else:
        new = [spawn(watcher) for _ in range(watcher.numprocesses)]
        for process, newcomer in zip(old, new, strict=False):
            _pair(process, newcomer)
        await watcher.manage_processes()
    watcher.notify_event("reload", {"time": time.time()})
    logger.info("%s reloaded", watcher.name)


async def _replace_expired(watcher: Any) -> None:
    """``Watcher.remove_expired_processes``: each has a new one beside it before it goes; circus's own does not."""
    now = time.monotonic()
    expired = [
        process
        for process in watcher.processes.values()
        if process.age() > watcher.max_age + random.randint(0, watcher.max_age_variance)
        and now - _kept.get(process.pid, -math.inf) >= _EXPIRES_AGAIN_AFTER
        and process not in _surplus(watcher)  # which go anyway, and need no other one
    ]
    paired = [process for process in expired if _pair(process, spawn(watcher))]
    stopped = await asyncio.gather(*(watcher.kill_process(process) for process in paired))
    for process, gone in zip(paired, stopped, strict=True):
        if gone:
            watcher.processes.pop(process.pid, None)


def _pair(process: Any, newcomer: Any) -> bool:
    if newcomer is None:
        return False
    _newcomers[process.pid] = newcomer.pid
    return True
