"""Processes beside the others of a program: started, put in the place of an old one, removed.

supervisord knows a process by a name in a group, and replaces one by stopping it first. A *twin* is one more process of
the group, under a name of its own (``web.next1``), with the newest configuration that was read. When it takes over it
gets the place, and the name, of the old process, which becomes ``web.old4242`` and is stopped by supervisord's rules.
Neither is ever started again by supervisord. They are removed as soon as they have ended, for ``start all`` starts
whatever it finds stopped; not before, or nobody would read their pipes, nor kill them when their time is over.

Groups are only changed out of verbs and timers, never out of an event: supervisord is walking through them then. And
its objects are told apart by identity: two that have the same priority are equal.
"""

from __future__ import annotations

import copy
import logging
import os
import signal
from collections.abc import Callable, Collection, Iterator
from typing import Any

from supervisor.states import STOPPED_STATES, ProcessStates, SupervisorStates

from sockshare.host.loop import Loop
from sockshare.kernel import peers, processes

from .inheritance import copy_foreign, keep_automatic_logs, share_logs
from .places import RETIRED, TWIN, Place, is_of, key_of, name_of, own_place, program_of, role_of

log = logging.getLogger(__name__)

#: Seconds until a stop signal is repeated that may have come too early.
_AGAIN = 0.05
#: Seconds that supervisord waits for longer than we do before it kills a process that is given up.
_BEHIND = 1.0

_LIVE = (ProcessStates.STARTING, ProcessStates.RUNNING)
_HALTED = (ProcessStates.STOPPING, ProcessStates.STOPPED)
_ENDED = (*STOPPED_STATES, ProcessStates.BACKOFF)


class CannotStart(Exception):
    """The message says why, in words for after a colon."""


class Twins:
    """The twins and the retired of one supervisord.

    Args:
        supervisord: The Supervisor object there is now.
    """

    def __init__(self, loop: Loop, supervisord: Callable[[], Any]) -> None:
        self._loop = loop
        self._supervisord = supervisord
        self._count = 0

    # What there is.

    def places(self, program: str) -> list[Place]:
        """The places of *program*: as many as it has processes outside a reload."""
        return [
            Place(group, key)
            for group, key, process in self._all()
            if program_of(process) == program and role_of(process) is None
        ]

    def live(self, program: str) -> list[Any]:
        """The running processes of *program* that nobody is stopping, twins among them, oldest first."""
        found = [
            process
            for _, _, process in self._all()
            if program_of(process) == program and process.pid and process.state in _LIVE and role_of(process) != RETIRED
        ]
        return sorted(found, key=lambda process: (process.laststart, process.pid))

    def is_stopped(self, program: str) -> bool:
        """Whether somebody has stopped all of *program*."""
        return all(place.process.state in _HALTED for place in self.places(program))

    def _all(self) -> Iterator[tuple[Any, str, Any]]:
        for group in list(self._supervisord().process_groups.values()):
            for key, process in list(group.processes.items()):
                yield group, key, process

    def _twins(self, program: str) -> list[Any]:
        return [process for process in self.live(program) if role_of(process) == TWIN]

    # What is done.

    def start(self, program: str) -> Any:
        """Start a twin of the oldest process of *program* that has none; the new process.

        Raises:
            CannotStart: It is not there, or does not start.
        """
        options = self._supervisord().options
        if options.mood < SupervisorStates.RUNNING:
            raise CannotStart("supervisord is shutting down, or restarting")
        self._sweep()
        place = self._next_place(program)
        config, number = self._newest(place), self._count + 1
        self._count = number
        beside = copy.copy(config)
        beside.name = f"{place.key}.next{number}"
        beside.autostart = beside.autorestart = False
        beside.startretries = 0
        # The environment names the process by what it is going to be.
        beside.environment = {**(config.environment or {}), "SUPERVISOR_PROCESS_NAME": place.key}
        beside.sockshare_role, beside.sockshare_key = TWIN, place.key
        old, group = place.process, place.group
        try:
            twin = beside.make_process(group)
        except Exception as error:
            raise CannotStart(str(error)) from error
        copy_foreign(old, twin)
        group.processes[beside.name] = twin
        try:
            twin.spawn()
            if not twin.pid:
                raise CannotStart(str(twin.spawnerr or "supervisord could not; its log has the reason"))
        except BaseException:
            del group.processes[beside.name]
            raise
        twin.sockshare_config = config
        share_logs(old, twin)
        return twin

    def _next_place(self, program: str) -> Place:
        taken = {(twin.group.config.name, key_of(twin)) for twin in self._twins(program)}
        free = [place for place in self.places(program) if (place.group.config.name, place.key) not in taken]
        if not free:
            raise CannotStart("every process of it is being replaced already")
        if self.is_stopped(program):
            raise CannotStart("it is stopped")
        running = [place for place in free if place.process.pid and place.process.state in _LIVE]
        # The order in which a reload replaces them: the oldest first.
        return min(running or free, key=lambda place: (place.process.laststart, place.process.pid))

    def _newest(self, place: Place) -> Any:
        """The configuration that was read last for *place*: a `reread` takes effect by the reload."""
        current = place.process.config
        for group in self._supervisord().options.process_group_configs:
            if group.name != place.group.config.name:
                continue
            for config in group.process_configs:
                if config.name == place.key and type(config) is type(current):
                    keep_automatic_logs(current, config)
                    return config
        return current

    def settle(
        self,
        program: str,
        retire: Collection[int],
        known: Collection[int],
        patience: float | None,
        stop_signal: int | None,
    ) -> list[int]:
        """Let none of *retire* be left, and no twin: each takes the place of an old one, or is given up.

        Args:
            patience: Twins are given up: killed, so many seconds after their stop signal. None: they take over.

        One of *retire* for which there is no twin, nor was to be, is stopped, and started again in its own place.

        Returns:
            The pids of those that are told to end.

        Raises:
            CannotStart: One of *known* is gone that was to take the place of one of *retire*; nothing was done.
        """
        retired: list[int] = []
        twins = self._twins(program)
        if patience is not None:
            for twin in [twin for twin in twins if twin.pid in retire or twin.pid not in known]:
                retired.append(twin.pid)
                self._give_up(twin, patience, stop_signal)
            return retired
        places = [place for place in self.places(program) if place.process.pid in retire and place.process.pid]
        able = [twin for twin in twins if twin.pid in known]
        if len(places) > len(able) and not set(known) <= {process.pid for process in self.live(program)}:
            raise CannotStart("the new process is gone")
        for twin in twins:
            if twin.pid not in known:
                retired.append(twin.pid)
                self.kill(twin)
        for twin in able:
            # Usually its own place. The one beside which it was started may have died, and its place be another's.
            place = next(
                (one for one in places if is_of(one, twin)),
                next((one for one in places if one.group is twin.group), own_place(twin)),
            )
            places = [one for one in places if one is not place]
            if place is not None:
                retired += self._take_over(place, twin, stop_signal)
        for place in places:
            retired += self._stop_and_start(place)
        return retired

    def _stop_and_start(self, place: Place) -> list[int]:
        process, pid = place.process, place.process.pid
        message = process.stop()
        if message:
            log.error("%s: can't stop pid %d: %s", place, pid, message)
            return []
        self._loop.call_later(_AGAIN, lambda: self._start_again(process))
        return [pid]

    def _start_again(self, process: Any) -> None:
        """What supervisord does by itself with one that ends, but not with one that was stopped."""
        if process.state == ProcessStates.STOPPING:
            self._loop.call_later(_AGAIN, lambda: self._start_again(process))
            return
        known = process.group.processes.get(process.config.name) is process and role_of(process) is None
        running = self._supervisord().options.mood >= SupervisorStates.RUNNING
        if process.state == ProcessStates.STOPPED and process.config.autorestart and known and running:
            process.spawn()

    def _take_over(self, place: Place, twin: Any, stop_signal: int | None) -> list[int]:
        group, key, old = place.group, place.key, place.process
        pid = old.pid
        del group.processes[twin.config.name]
        real = twin.sockshare_config if is_of(place, twin) else old.config
        was = old.config
        if pid:
            leaving = copy.copy(was)
            leaving.name = f"{key}.old{pid}"
            leaving.autostart = leaving.autorestart = False
            leaving.startretries = 0
            if stop_signal is not None:
                leaving.stopsignal = stop_signal
            leaving.sockshare_role, leaving.sockshare_key = RETIRED, key
            old.config = leaving
            group.processes[leaving.name] = old
        twin.config = real
        group.processes[key] = twin
        # What is active now; otherwise `update` would restart the group for a change that has been made.
        configs = group.config.process_configs
        configs[:] = [real if config.name == key else config for config in configs]
        if not pid:
            return []
        if old.state in _LIVE:
            self._stop(old)
        elif old.state in _ENDED:
            self._remove_later(old)
        return [pid]

    def _stop(self, process: Any) -> None:
        pid = process.pid
        is_itself = _has_executed(pid)
        message = process.stop()
        if message:
            log.error("%s: can't stop pid %d: %s", name_of(process), pid, message)
        elif not is_itself:
            self._loop.call_later(_AGAIN, lambda: self._stop_again(process, pid))

    def _stop_again(self, process: Any, pid: int) -> None:
        """A process that had not become its program yet has supervisord's own handlers, and forgets the signal."""
        if process.pid != pid or process.state != ProcessStates.STOPPING:
            return
        if not _has_executed(pid):
            self._loop.call_later(_AGAIN, lambda: self._stop_again(process, pid))
            return
        try:
            os.kill(pid, process.config.stopsignal)
        except OSError as error:
            log.warning("%s: can't stop pid %d: %s", name_of(process), pid, error)

    def _give_up(self, twin: Any, patience: float, stop_signal: int | None) -> None:
        if not patience:
            self.kill(twin)
            return
        # Its own copy. supervisord's SIGKILL, which misses what descends from it, is for when our timer is gone.
        twin.config.stopwaitsecs = patience + _BEHIND
        if stop_signal is not None:
            twin.config.stopsignal = stop_signal
        pid, family = twin.pid, [(one, _start_time(one)) for one in processes.tree(twin.pid)[1:]]
        self._stop(twin)
        self._loop.call_later(patience, lambda: self._end_family(twin, pid, family))

    def _end_family(self, twin: Any, pid: int, family: list[tuple[int, int | None]]) -> None:
        if twin.pid == pid:
            self.kill(twin)
        for one, start in family:
            if start is not None and _start_time(one) == start:  # its pid may be somebody else's by now
                _kill(one)

    def kill(self, process: Any) -> None:
        """Kill *process* and what descends from it, which it can't end any more itself."""
        pids = processes.tree(process.pid) if process.pid else []
        if process.state in (*_LIVE, ProcessStates.STOPPING):
            process.administrative_stop = True
            process.kill(signal.SIGKILL)
        for pid in pids[1:]:
            _kill(pid)

    # What happens.

    def changed(self, process: Any) -> None:
        """*process* has come to another state; called out of an event."""
        role = role_of(process)
        if role is not None and process.state in _ENDED:
            self._remove_later(process)
        elif role is None and process.state == ProcessStates.STOPPING:
            # Somebody stops the old process in the middle of its reload: the new one must not run on instead of it.
            for twin in self._twins(program_of(process) or ""):
                if twin.group is process.group and key_of(twin) == process.config.name:
                    log.info("%s: stopped while it was being replaced; so is what was to replace it", key_of(twin))
                    self._loop.call_later(0.0, lambda twin=twin: self._end(twin))  # type: ignore[misc]

    def _end(self, twin: Any) -> None:
        if role_of(twin) == TWIN:
            self.kill(twin)

    def _sweep(self) -> None:
        """Remove what has ended and was not removed, as after an error."""
        for _, _, process in self._all():
            if role_of(process) is not None:
                self._remove(process)

    def _remove_later(self, process: Any) -> None:
        self._loop.call_later(0.0, lambda: self._remove(process))

    def _remove(self, process: Any) -> None:
        if role_of(process) is None or process.pid or process.state not in _ENDED:
            return  # it took over, or somebody has started it again
        name = process.config.name
        if process.group.processes.get(name) is process:
            del process.group.processes[name]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        log.debug("can't kill pid %d: %s", pid, error.strerror)


def _start_time(pid: int) -> int | None:
    try:
        return peers.start_time(pid)
    except ProcessLookupError:
        return None


def _has_executed(pid: int) -> bool:
    """Whether our child *pid* is more than a copy of us."""
    try:
        return processes.has_executed(pid)
    except ProcessLookupError:
        return True
