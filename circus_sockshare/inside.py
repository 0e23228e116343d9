"""What runs inside circusd: the one command ``sockshare``, on which the plugin's verbs rest.

circus's own commands can't replace one process by another: ``incr`` and ``decr`` are refused while circusd does
anything else, ``decr`` may pick the wrong process when a new one has crashed and been respawned, and a singleton
refuses ``incr``. Each operation here is one uninterrupted step of circusd's loop, so nothing comes in between.

A process that is retired leaves ``watcher.processes`` at once. While it drains, circus therefore neither counts it (a
crash of another is respawned at the next check) nor picks a surplus process to stop, nor waits for it in the busy loop
of ``Watcher.reap_process``. A stop of the watcher, and so the end of circusd, waits for it all the same.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import math
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from circus import logger
from circus.commands.base import Command
from circus.controller import Controller
from circus.exc import ConflictError, MessageError
from circus.process import DEAD_OR_ZOMBIE, UNEXISTING, Process

from sockshare.host.launch import launched

from . import binding, configuration, descriptors, ends, holding, on_demand, plugin_command, replacing
from .ends import ENDS, SPAWN_ERRORS, note, read_rest, was_stopped

#: What circusd may be in the middle of when a process is started; anything else may be about to stop or replace it.
_HARMLESS = (None, "manage_watchers", "arbiter_start_watchers", "arbiter_add_watcher")

#: circusd's own watchers, besides the plugins.
_CIRCUS_OWN = ("circusd-stats", "circushttpd")

#: Seconds between looks at a process that was sent SIGKILL.
_DYING = 0.05


def install() -> None:
    """Have every controller that is initialized from now on know our command; repeating it changes nothing."""
    for patch in (plugin_command, binding, ends, configuration, on_demand, replacing):
        try:
            patch.install()
        except Exception as error:  # a circus of which one thing is another does all the rest
            logger.error("sockshare: can't install %s: %s", patch.__name__, error)
    original = Controller.initialize
    if getattr(original, "knows_sockshare", False):
        return

    @functools.wraps(original)
    def initialize(self: Any) -> None:
        self.commands[Sockshare.name] = Sockshare()
        original(self)

    initialize.knows_sockshare = True  # type: ignore[attr-defined]
    Controller.initialize = initialize
    Process.format_args = _wrap_command(Process.format_args)
    atexit.register(_remove_meeting_point, os.getpid())


def _wrap_command(original: Callable[..., Any]) -> Callable[..., Any]:
    """*original*, with the command ``sockshare`` being our own, which need not be in PATH."""

    @functools.wraps(original)
    def format_args(self: Any, *args: Any, **kwargs: Any) -> list[str]:
        words: list[str] = original(self, *args, **kwargs)
        if self.executable:
            return words  # the name is that of another file
        if not self.shell:
            return launched(words) or words
        name, _, rest = words[0].partition(" ")  # a line for the shell: each word of it is quoted
        command = launched([name])
        return words if command is None else [f"{shlex.join(command)} {rest}", *words[1:]]

    return format_args


def _remove_meeting_point(pid: int) -> None:
    if os.getpid() != pid:
        return
    from sockshare.host import meeting
    from sockshare.kernel.meeting import places

    for point in places(pid):
        meeting.remove(point)


class Sockshare(Command):  # type: ignore[misc]
    """\
    Serve the sockshare plugin
    ==========================

    Not for people: ``sockshare status`` and ``sockshare reload`` are.
    """

    name = "sockshare"
    properties = ["op"]  # noqa: RUF012

    def __init__(self) -> None:
        self._in_force: dict[str, Any] | None = None  # the last configuration that was right, section by section

    def message(self, *args: Any, **options: Any) -> None:
        """Refuse to be called from a command line."""
        raise MessageError("it serves the sockshare plugin; use `sockshare status`, `sockshare reload`")

    def execute(self, arbiter: Any, props: dict[str, Any]) -> dict[str, Any]:
        """Do one operation.

        Raises:
            MessageError: It can't be done.
            ConflictError: It can't be done just now.
        """
        op = props["op"]
        if time.monotonic() > props.get("before", math.inf):
            raise MessageError("it was asked too long ago")
        if op == "processes":
            return {**_processes(arbiter), "in_force": self._in_force, "unapplied": configuration.unapplied}
        if op == "report":
            return _report(arbiter, int(props["pid"]))
        if op == "in_force":
            self._in_force = props["configuration"]
            return {}
        if op == "send":
            descriptors.send(arbiter, props["names"], props["to"])
            return {}
        if op == "settle" and props["name"].lower() not in arbiter._watchers_names:
            return {"retired": [], "stopped": True}  # it was taken out, with all its processes
        watcher = self._get_watcher(arbiter, props["name"])
        if op == "start":
            return _start(arbiter, watcher)
        if op == "settle":
            return _settle(arbiter, watcher, props)
        if op == "claim":
            if not holding.claim(int(props["pid"])):
                raise MessageError(f"circus does not want to stop pid {props['pid']}, or not any more")
            return {}
        if op == "release":
            return _release(arbiter, watcher, props)
        raise MessageError(f"unknown operation {op!r}")


def _processes(arbiter: Any) -> dict[str, Any]:
    watchers = {
        watcher.name: _describe(watcher)
        for watcher in configuration.watchers(arbiter)
        if not watcher.name.startswith("plugin:") and watcher.name not in _CIRCUS_OWN
    }
    sockets = [
        {
            "name": sock.name,
            "fd": sock.fileno(),
            "inode": os.fstat(sock.fileno()).st_ino,
            "backlog": sock.backlog,
            "so_reuseport": bool(sock.so_reuseport),
            "blocking": bool(sock.blocking),
        }
        for sock in arbiter.sockets.values()
        if sock.fileno() >= 0
    ]
    path = getattr(arbiter, "config_file", None)
    return {
        "watchers": watchers,
        "sockets": sockets,
        "told_to_end": replacing.told_to_end(),
        "file": None if path is None else os.path.abspath(path),
    }


def _describe(watcher: Any) -> dict[str, Any]:
    live = sorted((p for p in watcher.processes.values() if not _is_dead(p)), key=lambda p: p.started)
    retiring = [one.process for one in _retiring if one.watcher is watcher and not _is_dead(one.process)]
    return {
        "numprocesses": watcher.numprocesses,
        "wanted": replacing.wanted(watcher),
        "singleton": bool(watcher.singleton),
        "status": watcher.status(),
        "respawn": bool(watcher.respawn),
        "graceful_timeout": watcher.graceful_timeout,
        "stop_signal": int(watcher.stop_signal),
        "stop_children": bool(watcher.stop_children),
        "uid": watcher.uid,
        "spawn_error": SPAWN_ERRORS.get(watcher.name, ""),
        "last": ENDS.last(watcher.name),
        "crashes": ENDS.crashes(watcher.name, time.monotonic()),
        "hooks": sorted(watcher.hooks),
        "cmd": watcher.cmd,
        "args": watcher.args,
        "stderr": _file_of(watcher.stderr_stream_conf),
        "on_demand": bool(watcher.on_demand),
        "options": {key: value for key, value in watcher._options.items() if key.startswith("sockshare")},
        "foreign": {key: str(value) for key, value in watcher._options.items() if not key.startswith("sockshare")},
        "processes": [
            {
                "pid": p.pid,
                "wid": p.wid,
                "started": p.started,
                "stopping": p in retiring or p.stopping,
                "held": holding.is_held(p.pid),
                "newcomer": holding.newcomer_of(p.pid),
            }
            for p in [*retiring, *live]
        ],
    }


def _report(arbiter: Any, pid: int) -> dict[str, Any]:
    """How *pid* ended, who wanted that, and what it wrote last; see `sockshare.host.verbs.Witness`."""
    processes = [*(one.process for one in _retiring)]
    for watcher in arbiter.iter_watchers():
        processes += watcher.processes.values()
        read_rest(watcher, pid)
    report = ENDS.report(pid)
    process = next((one for one in processes if one.pid == pid), None)
    if process is not None and report["status"] is None:
        code = process.poll()  # it is not buried; so does circusd look for the dead itself
        if code is not None:
            report["status"] = -code if code < 0 else code << 8
            report["stopped"] = was_stopped(process)
    report["wait_status"] = report.pop("status")  # circus's answers have a status of their own
    return report


def _file_of(conf: Any) -> str | None:
    if not conf or conf.get("class", "FileStream").rpartition(".")[2] not in ("FileStream", "WatchedFileStream"):
        return None
    name = conf.get("filename")
    return None if name is None else os.path.abspath(name)


def _is_dead(process: Any) -> bool:
    return process.status in (DEAD_OR_ZOMBIE, UNEXISTING)


def _start(arbiter: Any, watcher: Any) -> dict[str, Any]:
    """One more process of *watcher*, beside the others; of a singleton too."""
    running = arbiter._exclusive_running_command
    if arbiter._stopping or arbiter._restarting:
        raise MessageError("circusd is stopping")
    if _is_busy(arbiter):
        raise ConflictError(f"circusd is busy ({running})")
    if not watcher.is_active():
        raise (ConflictError if watcher.status() == "starting" else MessageError)(f"the watcher is {watcher.status()}")
    replacing.begin(watcher)
    try:
        started = holding.spawn(watcher)
        if started is None:
            raise MessageError("circusd could not start it, or a hook forbade it; circusd's log has the reason")
    except BaseException:
        replacing.withdraw(watcher)
        raise
    replacing.on_probation(watcher, started.pid)
    return {"pid": started.pid, "wid": started.wid}


def _is_busy(arbiter: Any) -> bool:
    return arbiter._stopping or arbiter._restarting or arbiter._exclusive_running_command not in _HARMLESS


def _settle(arbiter: Any, watcher: Any, props: dict[str, Any]) -> dict[str, Any]:
    """*watcher* has *count* processes from now on, and none of *retire*; see `replacing.settle`."""
    retire, known = set(props["retire"]), set(props["known"])
    for process in list(watcher.processes.values()):
        if _is_dead(process) and not process.stopping:
            watcher.reap_process(process.pid)
    count = replacing.settle(watcher, int(props["count"]), props.get("size"), proven=props.get("proven", True))
    going = [process for pid, process in watcher.processes.items() if pid in retire]
    staying = [process for process in watcher.processes.values() if process not in going and not process.stopping]
    # A new process that crashed was respawned before we were told: as many as are too many, the youngest first.
    strangers = sorted((process for process in staying if process.pid not in known), key=lambda p: -p.started)
    going += strangers[: max(len(staying) - count, 0)]
    signum = int(props.get("signal") or watcher.stop_signal)
    _retire(arbiter, watcher, going, signum, float(props["patience"]) if props["kill"] else None)
    if watcher.respawn and watcher.is_active() and not _is_busy(arbiter):
        # One that has died since: its place need not be empty until circus's next look.
        for _ in range(count - len(staying)):
            holding.spawn(watcher)
    stopped = watcher.is_stopping() or watcher.is_stopped()
    return {"retired": [process.pid for process in going], "stopped": stopped, "count": count}


def _release(arbiter: Any, watcher: Any, props: dict[str, Any]) -> dict[str, Any]:
    """What circus wants to stop is stopped; or it is kept, and the processes *kill* go instead."""
    pid, keep = int(props["pid"]), bool(props["keep"])
    signum = int(props.get("signal") or watcher.stop_signal)
    instead = [watcher.processes[one] for one in props["kill"] if one in watcher.processes]
    # In this order: once circus goes on, it must not find one too many.
    _retire(arbiter, watcher, instead, signum, float(props["patience"]))
    if not holding.release(pid, keep=keep, stop_signal=signum) and not keep and pid in watcher.processes:
        # Another command of circus's that would stop it is yet to come.
        _retire(arbiter, watcher, [watcher.processes[pid]], signum)
    return {}


def _retire(arbiter: Any, watcher: Any, going: Iterable[Any], signum: int, patience: float | None = None) -> None:
    """Stop *going*, by *signum* and the watcher's rules; or kill them, *patience* seconds after that signal."""
    refusals = []
    for process in going:
        # One that circus itself is stopping is circus's to wait for and to forget.
        if not process.stopping and not (patience is None and holding.release(process.pid, keep=False)):
            try:
                _Retiring(arbiter, watcher, process, signum, patience)
            except Exception as error:
                logger.exception("sockshare: can't retire %s process %s", watcher.name, process.pid)
                refusals.append(f"pid {process.pid}: {error}")
    if refusals:
        raise MessageError(f"can't stop a process of {watcher.name}: {'; '.join(refusals)}")


_retiring: list[_Retiring] = []


class _Retiring:
    """A process that was told to end: circus's signal, its event ``kill`` and its timeout, then SIGKILL.

    One that is given up has *patience* seconds instead of circus's timeout, or with none SIGKILL instead of the signal;
    and nobody who descends from it is left.
    """

    def __init__(self, arbiter: Any, watcher: Any, process: Any, signum: int, patience: float | None) -> None:
        self.watcher = watcher
        self.process = process
        self._loop = arbiter.loop
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        _make_stop_wait(watcher)
        # Killed, it can't end its own workers, which would go on to serve.
        self._doomed = [] if patience is None else self._descendants()
        # Sends the signal before it first yields, for which it wants the process in watcher.processes.
        if patience is None:
            killed = holding.stop_process(watcher, process, signum, watcher.graceful_timeout)
        elif patience:
            killed = holding.stop_process(watcher, process, signum, patience)
        else:
            killed = holding.stop_process(watcher, process, signal.SIGKILL, watcher.graceful_timeout)
            _kill(self._doomed)
        replacing.forget(process.pid)  # it is us who told it
        if killed.done():
            killed.result()  # raises what kept the signal from being sent; circus still has the process then
        watcher.processes.pop(process.pid, None)
        _retiring.append(self)
        replacing.draining(watcher, process)
        self._loop.add_future(killed, self._signalled)

    def _descendants(self) -> list[Any]:
        try:
            return list(self.process._worker.children(recursive=True))
        except Exception:  # psutil's: it is gone
            return []

    def _signalled(self, killed: Any) -> None:
        try:
            killed.result()
        except Exception:
            logger.exception("sockshare: retiring pid %s of %s failed", self.process.pid, self.watcher.name)
        if self.process.is_alive():
            # Its time is over. (circus's own SIGKILL finds it by watcher.processes, and misses grandchildren.)
            _kill([self.process._worker, *self._descendants()])
        _kill(self._doomed)  # psutil's: a pid that is somebody else's by now is left alone
        self._bury()

    def _bury(self) -> None:
        if self.process.is_alive():
            self._loop.call_later(_DYING, self._bury)
            return
        # No event `reap`: circus has none for what it stops itself, and plugins (Flapping) take it for a crash.
        _retiring.remove(self)
        replacing.ended(self.process)
        try:
            note(self.watcher, self.process)
            self.process.stop()  # closes its pipes
        except Exception:
            logger.exception("sockshare: can't close what pid %s of %s had", self.process.pid, self.watcher.name)
        self._over.set_result(None)

    async def over(self) -> None:
        """Return when it is dead."""
        await asyncio.shield(self._over)


def _kill(processes: Iterable[Any]) -> None:
    for process in processes:
        try:
            process.kill()
        except Exception as error:  # psutil's: it is gone, or another user's
            logger.debug("sockshare: can't kill %s: %s", process, error)


def _make_stop_wait(watcher: Any) -> None:
    """Have a stop of *watcher* (and so of circusd) wait for what was retired from it."""
    original: Callable[..., Any] = watcher.kill_processes
    if getattr(original, "waits_for_retiring", False):
        return

    async def kill_processes(*args: Any, **kwargs: Any) -> None:
        await original(*args, **kwargs)
        for one in [one for one in _retiring if one.watcher is watcher]:
            await one.over()

    kill_processes.waits_for_retiring = True  # type: ignore[attr-defined]
    watcher.kill_processes = kill_processes
