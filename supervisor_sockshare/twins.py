"""Processes beside the others of a program: started, put in the place of an old one, removed.

supervisord knows a process by a name in a group, and replaces one by stopping it first. A *twin* is one more process of
the group, under a name of its own (``web.next1``), with the configuration that the reload began with. When it takes
over it gets the place, and the name, of the old process, which becomes ``web.old4242``, drains, and is stopped by
supervisord's rules. Neither is ever started again by supervisord. They are removed as soon as they have ended, for
``start all`` starts whatever it finds stopped; not before, or nobody would read their pipes, nor kill them when their
time is over.

Groups are only changed out of verbs and timers, never out of an event: supervisord is walking through them then. And
its objects are told apart by identity: two that have the same priority are equal.
"""

from __future__ import annotations

import copy
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

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

#: So many readings of the configuration are kept for reloads that began with them, and so many pids of processes that
#: somebody else had stopped.
_READINGS, _STOPPED = 8, 64

_LIVE = (ProcessStates.STARTING, ProcessStates.RUNNING)
_HALTED = (ProcessStates.STOPPING, ProcessStates.STOPPED)
_ENDED = (*STOPPED_STATES, ProcessStates.BACKOFF)


class CannotStart(Exception):
    """The message says why, in words for after a colon."""


class _Walk(NamedTuple):
    """What all groups have, by program."""

    running: dict[str | None, list[tuple[Any, str, Any]]]
    read: dict[str | None, list[tuple[str, Any]]]  # of the newest reading, with the groups' names


class Twins:
    """The twins and the retired of one supervisord.

    Args:
        supervisord: The Supervisor object there is now.
        applied: The number of the reading that a reload of a program applies just now; None if none runs.
    """

    def __init__(
        self,
        loop: Loop,
        supervisord: Callable[[], Any],
        applied: Callable[[str], int | None] = lambda program: None,
    ) -> None:
        self._loop = loop
        self._supervisord = supervisord
        self._applied = applied
        self._count = 0
        self._readings: dict[int, Any] = {}  # groups' configurations by the number of their reading
        self._last_reading = 0
        self._ours: Any = None  # what we are stopping just now
        self._stopped: deque[tuple[str, int]] = deque(maxlen=_STOPPED)  # program and pid
        self._walk: _Walk | None = None  # what a walk through all groups has found, while it holds

    def renew(self) -> None:
        """supervisord is another one since its ``reload``, and what the one before had read is nobody's any more.

        A process that had a configuration of that would be in the books of the one before, and never be buried.
        """
        self._readings.clear()
        self._stopped.clear()

    # What there is.

    @contextmanager
    def walked(self) -> Iterator[None]:
        """One walk through all groups answers all that is asked meanwhile, in which nothing may change."""
        walk = _Walk({}, {})
        for entry in self._all():
            walk.running.setdefault(program_of(entry[2]), []).append(entry)
        for group in self._readings[self.reading()]:
            for config in group.process_configs:
                walk.read.setdefault(getattr(config, "sockshare_program", None), []).append((group.name, config))
        self._walk = walk
        try:
            yield
        finally:
            self._walk = None

    def places(self, program: str) -> list[Place]:
        """The places of *program*: as many as it has processes outside a reload."""
        return [Place(group, key) for group, key, process in self._of(program) if role_of(process) is None]

    def live(self, program: str) -> list[Any]:
        """The running processes of *program* that nobody is stopping, twins among them, oldest first."""
        found = [
            process
            for _, _, process in self._of(program)
            if process.pid
            and process.state in _LIVE
            and role_of(process) != RETIRED
            and not getattr(process, "sockshare_ends", False)
        ]
        return sorted(found, key=lambda process: (process.laststart, process.pid))

    def is_stopped(self, program: str) -> bool:
        """Whether somebody has stopped all of *program*."""
        return all(place.process.state in _HALTED for place in self.places(program))

    def stopped(self, program: str) -> list[int]:
        """The pids of those of *program* that somebody else had supervisord stop, in that order."""
        live = {process.pid for _, _, process in self._of(program) if process.state in _LIVE}
        return [pid for name, pid in self._stopped if name == program and pid not in live]

    def reading(self) -> int:
        """The number of the configuration that was read last."""
        groups = self._supervisord().options.process_group_configs
        if self._readings.get(self._last_reading) is not groups:
            self._last_reading += 1
            self._readings[self._last_reading] = groups
            self._readings.pop(self._last_reading - _READINGS, None)
        return self._last_reading

    def missing(self, program: str, reading: int) -> list[tuple[Any, Any]]:
        """The group and the configuration of each place that *program* has in *reading*, and not yet here."""
        groups = self._supervisord().process_groups
        twins = {(twin.group.config.name, key_of(twin)) for twin in self._twins(program)}
        return [
            (groups[group], config)
            for group, config in self._read(program, reading)
            if group in groups and config.name not in groups[group].processes and (group, config.name) not in twins
        ]

    def is_surplus(self, process: Any, reading: int) -> bool:
        """Whether its program has places in *reading*, and *process*'s is none of them."""
        names = [
            config.name
            for group, config in self._read(program_of(process) or "", reading)
            if group == process.group.config.name
        ]
        return bool(names) and key_of(process) not in names

    def _all(self) -> Iterator[tuple[Any, str, Any]]:
        for group in list(self._supervisord().process_groups.values()):
            for key, process in list(group.processes.items()):
                yield group, key, process

    def _of(self, program: str) -> list[tuple[Any, str, Any]]:
        if self._walk is not None:
            return self._walk.running.get(program, [])
        return [entry for entry in self._all() if program_of(entry[2]) == program]

    def _read(self, program: str, reading: int) -> list[tuple[str, Any]]:
        """The configurations that *program* has in *reading*, with the names of their groups."""
        if self._walk is not None and reading == self._last_reading:
            return self._walk.read.get(program, [])
        return [
            (group.name, config)
            for group in self._readings.get(reading, ())
            for config in group.process_configs
            if getattr(config, "sockshare_program", None) == program
        ]

    def _twins(self, program: str) -> list[Any]:
        return [process for process in self.live(program) if role_of(process) == TWIN]

    # What is done.

    def start(self, program: str, *, beside: int | None = None, reading: int | None = None) -> Any:
        """Start a twin; the new process.

        Args:
            beside: The pid of the process whose place it is to have; None: the oldest that has no twin or, with a
                *reading*, a place that only that has.
            reading: The number of the configuration that it is to have; None: the newest.

        Raises:
            CannotStart: It is not there, or does not start.
        """
        options = self._supervisord().options
        if options.mood < SupervisorStates.RUNNING:
            raise CannotStart("supervisord is shutting down, or restarting")
        self._sweep()
        if reading is not None and reading not in self._readings:
            raise CannotStart("the configuration that the reload began with was read too long ago; reload once more")
        number = self.reading() if reading is None else reading
        if reading is not None and beside is None:
            missing = self.missing(program, reading)
            if not missing:
                raise CannotStart("every place that its configuration has is taken")
            if self.is_stopped(program):
                raise CannotStart("it is stopped")
            group, config = missing[0]
            return self._start_twin(group, config.name, config, None, number)
        place = self._next_place(program) if beside is None else self._place_of(program, beside)
        twin = self._start_twin(place.group, place.key, self._newest(place, number), place.process, number)
        twin.sockshare_guessed = place.process.pid != beside
        return twin

    def _start_twin(self, group: Any, key: str, config: Any, old: Any, reading: int) -> Any:
        self._count = number = self._count + 1
        if old is None:
            try:
                config.create_autochildlogs()  # as for a group that `update` adds; others have those of the old one
            except OSError as error:
                raise CannotStart(f"can't make its log: {error.strerror or error}") from error
        beside = copy.copy(config)
        beside.name = f"{key}.next{number}"
        beside.autostart = beside.autorestart = False
        beside.startretries = 0
        # The environment names the process by what it is going to be.
        beside.environment = {**(config.environment or {}), "SUPERVISOR_PROCESS_NAME": key}
        beside.sockshare_role, beside.sockshare_key = TWIN, key
        try:
            twin = beside.make_process(group)
        except Exception as error:
            raise CannotStart(str(error)) from error
        if old is not None:
            copy_foreign(old, twin)
        group.processes[beside.name] = twin
        try:
            twin.spawn()
            if not twin.pid:
                raise CannotStart(str(twin.spawnerr or "supervisord could not; its log has the reason"))
        except BaseException:
            del group.processes[beside.name]
            raise
        self._stopped = deque((one for one in self._stopped if one[1] != twin.pid), _STOPPED)
        twin.sockshare_config, twin.sockshare_reading = config, reading
        if old is not None:
            share_logs(old, twin)
        return twin

    def _place_of(self, program: str, pid: int) -> Place:
        for place in self.places(program):
            if place.process.pid == pid:
                if place.process.state not in _LIVE:
                    raise CannotStart(f"{place} (pid {pid}) is being stopped by supervisord")
                if any(is_of(place, twin) for twin in self._twins(program)):
                    raise CannotStart(f"{place} (pid {pid}) is being replaced already")
                return place
        # It has died: its place is one in which nothing runs, or that has what was started last.
        free = [place for place in self._free(program) if not place.process.administrative_stop]
        if not free or any(stopped == pid for _, stopped in self._stopped):
            raise CannotStart(f"pid {pid}, beside which it was to start, has ended")
        return max(free, key=lambda place: (not _runs(place), place.process.laststart))

    def _next_place(self, program: str) -> Place:
        free = self._free(program)
        running = [place for place in free if _runs(place)]
        # The order in which a reload replaces them: the oldest first.
        return min(running or free, key=lambda place: (place.process.laststart, place.process.pid))

    def _free(self, program: str) -> list[Place]:
        taken = {(twin.group.config.name, key_of(twin)) for twin in self._twins(program)}
        free = [place for place in self.places(program) if (place.group.config.name, place.key) not in taken]
        if not free:
            raise CannotStart("every process of it is being replaced already")
        if self.is_stopped(program):
            raise CannotStart("it is stopped")
        return free

    def _newest(self, place: Place, reading: int) -> Any:
        """The configuration of *place* in *reading*: a `reread` takes effect by the reload."""
        current = place.process.config
        for group in self._readings[reading]:
            if group.name != place.group.config.name:
                continue
            for config in group.process_configs:
                if config.name == place.key and type(config) is type(current):
                    keep_automatic_logs(current, config)
                    return config
        return current

    def replace(
        self, program: str, retire: Collection[int], known: Collection[int], reading: int, stop_signal: int | None
    ) -> None:
        """Let twins, of *known*, have the places of *retire*, which are not stopped yet; a repetition changes nothing.

        One of *retire* whose place is none in *reading* loses it. With none to retire, twins have places of their own.
        """
        self._prove(program)
        twins = [twin for twin in self._twins(program) if twin.pid in known]
        for place in self.places(program):
            if place.process.pid in retire and place.process.pid:
                twin = next((one for one in twins if is_of(place, one)), None)
                if twin is not None:
                    self._swap(place, twin, stop_signal)
                elif self.is_surplus(place.process, reading):
                    self._drop(place, stop_signal)
        for twin in twins if not retire else ():
            if own_place(twin) is None:
                self._add(twin)

    def settle(
        self,
        program: str,
        retire: Collection[int],
        known: Collection[int],
        patience: float | None,
        stop_signal: int | None,
    ) -> list[int]:
        """Let none of *retire* be left: a twin takes the place of each, or is given up.

        A twin whose place has nobody of *known* has that place from now on; one that is not *known* is killed.

        Args:
            patience: Twins are given up: killed, so many seconds after their stop signal. None: they take over.

        One of *retire* for which there is no twin, nor was to be, is stopped, and started again in its own place.

        Returns:
            The pids of those that are told to end.

        Raises:
            CannotStart: One of *known* is gone that was to take the place of one of *retire*; nothing was done.
        """
        retired: list[int] = []
        if patience is not None:
            self._give_back(program, retire, known)
            self._give_configurations_back(program)
            for twin in self._twins(program):
                if twin.pid in retire or twin.pid not in known:
                    retired.append(twin.pid)
                    self._give_up(twin, patience, stop_signal)
            return retired
        twins = self._twins(program)
        able = [twin for twin in twins if twin.pid in known]
        takes: list[tuple[Place, Any]] = []
        left: list[Place] = []
        for place in [one for one in self.places(program) if one.process.pid in retire and one.process.pid]:
            # Usually its own place. The one beside which it was started may have died, and its place be another's.
            free = [one for one in able if one.pid not in {twin.pid for _, twin in takes}]
            twin = next(
                (one for one in free if is_of(place, one)),
                next((one for one in free if one.group is place.group and _may_go_elsewhere(one, known)), None),
            )
            if twin is not None:
                takes.append((place, twin))
            else:
                left.append(place)
        if left and not set(known) <= {process.pid for process in self.live(program)}:
            raise CannotStart("the new process is gone")
        for twin in twins:
            own = own_place(twin)
            if twin.pid not in known:
                retired.append(twin.pid)
                self.kill(twin)
            elif own is not None and _is_placeless(twin, known) and twin.pid not in {one.pid for _, one in takes}:
                takes.append((own, twin))
        self._prove(program)
        for place, twin in takes:
            retired += self._take_over(place, twin, stop_signal)
        for place in left:
            retired += self._stop_and_start(place)
        for _, _, process in self._all():
            if role_of(process) == RETIRED and process.pid in retire and process.state in _LIVE:
                retired.append(process.pid)
                if stop_signal is not None:  # what `replace` was told may be less: not what its server takes
                    process.config.stopsignal = stop_signal
                self._stop(process)
        return retired

    def _stop_and_start(self, place: Place) -> list[int]:
        process, pid = place.process, place.process.pid
        message = self._have_stop(process)
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
        # `update`, or a `reload` of supervisord, may have another group of that name by now.
        known = known and self._supervisord().process_groups.get(process.group.config.name) is process.group
        running = self._supervisord().options.mood >= SupervisorStates.RUNNING
        if process.state == ProcessStates.STOPPED and process.config.autorestart and known and running:
            process.spawn()

    def _take_over(self, place: Place, twin: Any, stop_signal: int | None) -> list[int]:
        old, pid = place.process, place.process.pid
        self._swap(place, twin, stop_signal)
        if not pid:
            return []
        if old.state in _LIVE:
            self._stop(old)
        elif old.state in _ENDED:
            self._remove_later(old)
        return [pid]

    def _swap(self, place: Place, twin: Any, stop_signal: int | None) -> None:
        """Let *twin* have *place*; the old process of it is not stopped."""
        group, key, old = place.group, place.key, place.process
        del group.processes[twin.config.name]
        real = twin.sockshare_config if is_of(place, twin) else old.config
        old.sockshare_successor = twin
        self._displace(place, stop_signal)
        twin.config = real
        group.processes[key] = twin
        # What is active now; otherwise `update` would restart the group for a change that has been made.
        configs = group.config.process_configs
        configs[:] = [real if config.name == key else config for config in configs]

    def _displace(self, place: Place, stop_signal: int | None) -> None:
        old, pid = place.process, place.process.pid
        if not pid:
            return
        leaving = copy.copy(old.config)
        leaving.name = f"{place.key}.old{pid}"
        leaving.autostart = leaving.autorestart = False
        leaving.startretries = 0
        if stop_signal is not None:
            leaving.stopsignal = stop_signal
        leaving.sockshare_role, leaving.sockshare_key = RETIRED, place.key
        old.sockshare_config, old.config = old.config, leaving
        place.group.processes[leaving.name] = old

    def _drop(self, place: Place, stop_signal: int | None) -> None:
        """*place* is none any more."""
        place.process.sockshare_successor = None
        self._displace(place, stop_signal)
        del place.group.processes[place.key]
        configs = place.group.config.process_configs
        configs[:] = [config for config in configs if config.name != place.key]

    def _add(self, twin: Any) -> None:
        """*twin* has a place that was none before."""
        group, key = twin.group, key_of(twin)
        del group.processes[twin.config.name]
        twin.config = twin.sockshare_config
        group.processes[key] = twin
        order = [
            config.name
            for read in self._readings.get(twin.sockshare_reading, ())
            if read.name == group.config.name
            for config in read.process_configs
        ]
        configs = group.config.process_configs
        configs.append(twin.config)
        # In the order of what was read: `update` compares the lists.
        configs.sort(key=lambda config: order.index(config.name) if config.name in order else len(order))

    def _give_back(self, program: str, retire: Collection[int], known: Collection[int]) -> None:
        """Let those of *known* that drain have their places again whose successors are to go, or have died."""
        for group, name, old in list(self._all()):
            if program_of(old) != program or role_of(old) != RETIRED or old.pid not in known or old.state not in _LIVE:
                continue
            twin, key = old.sockshare_successor, key_of(old)
            if twin is None or group.processes.get(key) is not twin or (twin.pid in known and twin.pid not in retire):
                continue
            del group.processes[name]
            old.config = old.sockshare_config
            group.processes[key] = old
            configs = group.config.process_configs
            configs[:] = [old.config if config.name == key else config for config in configs]
            beside = copy.copy(twin.config)
            self._count += 1
            beside.name = f"{key}.next{self._count}"
            beside.autostart = beside.autorestart = False
            beside.startretries = 0
            beside.sockshare_role, beside.sockshare_key = TWIN, key
            twin.config = beside
            group.processes[beside.name] = twin
            if not twin.pid:
                self._remove_later(twin)

    def _stop(self, process: Any) -> None:
        pid = process.pid
        is_itself = _has_executed(pid)
        message = self._have_stop(process)
        if message:
            log.error("%s: can't stop pid %d: %s", name_of(process), pid, message)
        elif not is_itself:
            self._loop.call_later(_AGAIN, lambda: self._stop_again(process, pid))

    def _have_stop(self, process: Any) -> str | None:
        self._ours = process
        try:
            message: str | None = process.stop()
            return message
        finally:
            self._ours = None

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
            self._ours = process
            try:
                process.kill(signal.SIGKILL)
            finally:
                self._ours = None
        for pid in pids[1:]:
            _kill(pid)

    # What happens.

    def changed(self, process: Any) -> None:
        """*process* has come to another state; called out of an event."""
        role, program = role_of(process), program_of(process) or ""
        if process.state == ProcessStates.STARTING and role is None:
            self._start_with(process, self._applied(program))
        if process.state == ProcessStates.RUNNING:  # whose pid another had before
            self._stopped = deque((one for one in self._stopped if one[1] != process.pid), _STOPPED)
        if process.state == ProcessStates.STOPPING and process is not self._ours:
            self._stopped.append((program, process.pid))
        if role is not None and process.state in _ENDED:
            self._remove_later(process)
        elif role is None and process.state == ProcessStates.STOPPING:
            # Somebody stops the old process in the middle of its reload: the new one must not run on instead of it.
            for twin in self._twins(program):
                if process is not self._ours and twin.group is process.group and key_of(twin) == process.config.name:
                    self._stopped.append((program, twin.pid))
                    twin.sockshare_ends = True  # nothing may give it the place before the timer has come
                    log.info("%s: stopped while it was being replaced; so is what was to replace it", key_of(twin))
                    self._loop.call_later(0.0, lambda twin=twin: self._end(twin))  # type: ignore[misc]

    def _start_with(self, process: Any, reading: int | None) -> None:
        """*process* is about to start in its place while a reload applies *reading*: so does it.

        Unless `update` has given it what was read later.
        """
        if reading not in self._readings or self._is_later(process.config, reading):
            return
        place = Place(process.group, process.config.name)
        if process.group.processes.get(place.key) is process:
            real = self._newest(place, reading)
            if real is not process.config and not hasattr(process, "sockshare_before"):
                process.sockshare_before = process.config
            self._configure(place, real)

    def _configure(self, place: Place, config: Any) -> None:
        place.process.config = config
        configs = place.group.config.process_configs
        configs[:] = [config if one.name == place.key else one for one in configs]

    def _prove(self, program: str) -> None:
        """What a reload applies is in force: nothing gives back what was before it."""
        for place in self.places(program):
            vars(place.process).pop("sockshare_before", None)

    def _give_configurations_back(self, program: str) -> None:
        """Let processes that began in their places with what a reload applied begin with what was before, next time."""
        for place in self.places(program):
            before = vars(place.process).pop("sockshare_before", None)
            if before is not None:
                self._configure(place, before)

    def _is_later(self, config: Any, reading: int) -> bool:
        self.reading()  # so that what was read last is known
        later = [groups for number, groups in self._readings.items() if number > reading]
        return any(config is one for groups in later for group in groups for one in group.process_configs)

    def _end(self, twin: Any) -> None:
        if role_of(twin) == TWIN and twin.state in _LIVE:  # it may serve already
            self._give_up(twin, twin.config.stopwaitsecs, None)

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


def _runs(place: Place) -> bool:
    return bool(place.process.pid) and place.process.state in _LIVE


def _is_placeless(twin: Any, known: Collection[int]) -> bool:
    """Whether nobody of *known* has the place of *twin*, nor was it stopped by somebody."""
    place = own_place(twin)
    return place is not None and place.process.pid not in known and place.process.state not in _HALTED


def _may_go_elsewhere(twin: Any, known: Collection[int]) -> bool:
    """Whether *twin* may have another place than its own: a broker of the version before does not say which it is."""
    return getattr(twin, "sockshare_guessed", False) or _is_placeless(twin, known)


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
