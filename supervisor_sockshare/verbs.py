"""The link's verbs, done by supervisord's own objects in its own loop: each is one step that nothing interrupts."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from supervisor.states import ProcessStates, getProcessStateDescription

from sockshare.core.spec import ProgramSpec
from sockshare.host.verbs import Answer
from sockshare.kernel import peers, processes

from .ends import ENDS
from .places import name_of, program_of
from .polling import PollLoop
from .twins import CannotStart, Twins

log = logging.getLogger(__name__)

_ACTIVE = (ProcessStates.STARTING, ProcessStates.RUNNING, ProcessStates.BACKOFF)


class SupervisorVerbs:
    """See `sockshare.host.verbs.Verbs`.

    Args:
        supervisord: The Supervisor object there is now.
        renew: Makes the socket of a name anew, if it is that inode still (`Registry.renew`).
    """

    def __init__(
        self, loop: PollLoop, supervisord: Callable[[], Any], twins: Twins, renew: Callable[[str, int], None]
    ) -> None:
        self._loop = loop
        self._supervisord = supervisord
        self._twins = twins
        self._renew = renew
        self.specs: Mapping[str, ProgramSpec] = {}

    def whois(self, pid: int, answer: Answer) -> None:
        """See `Verbs`. A child is in supervisord's books before it runs: nobody has to be asked twice."""
        answer.give(process=self._look_up(pid))

    def _look_up(self, pid: int) -> dict[str, Any] | None:
        # supervisord keeps a pid in its books until it has buried the process, so it is nobody else's.
        books = self._supervisord().options.pidhistory
        for candidate in [*peers.ancestors(pid), *_leader(pid)]:
            process = books.get(candidate)
            if process is not None:
                program = program_of(process)
                if program is None:
                    return None
                return {"program": program, "process": name_of(process), "pid": candidate}
        return None

    def processes(self, answer: Answer) -> None:
        """See `Verbs`; a process that is on its way out is none of a program's any more."""
        programs = {}
        with self._twins.walked():  # supervisord waits, and may have hundreds of them
            for program in self.specs:
                places = self._twins.places(program)
                if places:
                    programs[program] = self._describe(program, places)
        answer.give(programs=programs)

    def _describe(self, program: str, places: Sequence[Any]) -> dict[str, Any]:
        live, reading = self._twins.live(program), self._twins.reading()
        config = (live[0] if live else places[0].process).config
        spec = self.specs.get(program)
        return {
            "numprocesses": len(places),
            "names": [str(place) for place in places],
            "active": any(place.process.state in _ACTIVE for place in places),
            "state": _state([place.process.state for place in places]),
            "command": str(config.command),
            "places": [
                {
                    "process": str(place),
                    "pid": int(place.process.pid or 0),
                    "state": getProcessStateDescription(place.process.state),
                    "spawn_error": _spawn_error(place.process),
                    "last": ENDS.last(str(place)),
                    "crashes": ENDS.crashes(str(place), time.monotonic()),
                }
                for place in places
            ],
            "stderr": _file(config.stdout_logfile if config.redirect_stderr else config.stderr_logfile),
            "stop_signal": (spec and spec.stop_signal) or int(config.stopsignal),
            "stop_timeout": config.stopwaitsecs,
            "processes": [
                {
                    "pid": process.pid,
                    "process": name_of(process),
                    "started": process.laststart,
                    "surplus": self._twins.is_surplus(process, reading),
                }
                for process in live
            ],
            "missing": len(self._twins.missing(program, reading)),
            "configuration": reading,
            "stopped": self._twins.stopped(program),
        }

    def report(self, pid: int, answer: Answer) -> None:
        """See `Witness`. A process that has died, and is not buried, still has its last lines to give."""
        process = self._supervisord().options.pidhistory.get(pid)
        if process is not None and process.pid == pid and not processes.alive(pid):
            self._loop.hurry()
            self._loop.call_later(0.0, lambda: answer.give(**ENDS.report(pid)))
            return
        answer.give(**ENDS.report(pid))

    def start(self, program: str, answer: Answer) -> None:
        """See `Verbs`."""
        self._start(program, answer, None, None)

    def start_beside(self, program: str, beside: int | None, configuration: int, answer: Answer) -> None:
        """See `Placing`."""
        self._start(program, answer, beside, configuration)

    def replace(
        self, program: str, retire: Sequence[int], known: Sequence[int], configuration: int, answer: Answer
    ) -> None:
        """See `Placing`."""
        spec = self.specs.get(program)
        self._twins.replace(program, retire, known, configuration, spec.stop_signal if spec else None)
        answer.give()

    def _start(self, program: str, answer: Answer, beside: int | None, reading: int | None) -> None:
        try:
            process = self._twins.start(program, beside=beside, reading=reading)
        except CannotStart as error:
            answer.refuse(f"can't start a process of {program}: {error}")
            return
        log.info("%s: started %s beside it (pid=%d)", name_of(process), process.config.name, process.pid)
        answer.give(pid=process.pid, process=name_of(process))

    def renew(self, name: str, inode: int, answer: Answer) -> None:
        """See `Renewing`."""
        try:
            self._renew(name, inode)
        except OSError as error:
            answer.refuse(f"can't make it anew: {error.strerror or error}")
        else:
            answer.give()

    def settle(
        self,
        program: str,
        retire: Sequence[int],
        known: Sequence[int],
        count: int,
        kill: bool,
        patience: float,
        answer: Answer,
        stop_signal: int | None = None,
    ) -> None:
        """See `Verbs`. The *count* is what supervisord has anyway: a twin takes a place and adds none."""
        spec = self.specs.get(program)
        try:
            given = patience if kill else None
            own = spec.stop_signal if spec else None
            retired = self._twins.settle(program, retire, known, given, stop_signal or own)
        except CannotStart as error:
            answer.refuse(f"can't stop a process of {program}: {error}")
            return
        log.info("%s: %s %s", program, "given up" if kill else "retired", retired or "none")
        answer.give(retired=retired, stopped=self._twins.is_stopped(program))


def _state(states: Sequence[int]) -> str:
    """The state that all of them are in, or how many are in which."""
    counted = Counter(getProcessStateDescription(state) for state in states)
    if len(counted) == 1:
        return str(next(iter(counted)))
    return ", ".join(f"{count} {name}" for name, count in counted.most_common())


def _spawn_error(process: Any) -> str:
    """Why *process* could not be started; what it did afterwards is told by how it ended."""
    reason = str(process.spawnerr or "")
    return "" if reason.startswith(("Exited too quickly", "Bad exit code")) else reason


def _leader(pid: int) -> list[int]:
    """The leader of the process group of *pid*, as far as it proves where *pid* comes from.

    supervisord makes each process the leader of a group, in which also those stay whose parents have ended. But all
    that it starts are of one session, in which anybody may join any group (setpgid(2)): a user has no say for another.
    """
    try:
        leader = os.getpgid(pid)
        return [leader] if processes.uids(pid) & processes.uids(leader) else []
    except OSError:
        return []


def _file(name: Any) -> str | None:
    return os.path.abspath(name) if isinstance(name, str) else None
