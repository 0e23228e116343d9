"""The link's verbs, done by circusd (`circus_sockshare.inside`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sockshare.core.spec import ProgramSpec
from sockshare.host.loop import Loop, guarded
from sockshare.host.verbs import Answer
from sockshare.kernel import peers

from .circusd import Circusd, Refusal

log = logging.getLogger(__name__)

#: Seconds for which a start that meets another command of circusd is tried again, and between the attempts. The broker
#: waits 10 for the answer.
_TRY_AGAIN_FOR = 5.0
_TRY_AGAIN_AFTER = 0.1


class _Managed(NamedTuple):
    program: str
    process: str
    start: int  # clock ticks since boot: the pid alone may be another process's by now


class CircusVerbs:
    """See `sockshare.host.verbs.Verbs`.

    Args:
        learned: Called with each of circusd's answers to our operation ``processes``: it has the configuration too.
    """

    def __init__(self, loop: Loop, circusd: Circusd, learned: Callable[[dict[str, Any]], None]) -> None:
        self._loop = loop
        self._circusd = circusd
        self._learned = learned
        self._managed: dict[int, _Managed] = {}
        self._told: dict[str, Any] = {"watchers": {}, "sockets": []}
        self._asking = False
        self._waiting: list[tuple[Callable[[], None], Callable[[Refusal], None]]] = []
        self._starting: dict[str, object] = {}  # which attempt to start one of a program is the last
        self.specs: Mapping[str, ProgramSpec] = {}

    def refresh(self, done: Callable[[], None], refused: Callable[[Refusal], None]) -> None:
        """Ask circusd what runs, then call one of *done* and *refused*; questions that meet share one answer."""
        self._waiting.append((done, refused))
        # An answer to a question that was asked earlier may be of before the process that this one is about.
        if not self._asking:
            self._ask()

    def _ask(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._asking = True

        def done(answer: dict[str, Any]) -> None:
            self._learn(answer)  # what it raises comes back as a refusal
            finish(one for one, _ in waiting)

        def refused(refusal: Refusal) -> None:
            finish(_partial(one, refusal) for _, one in waiting)

        def finish(calls: Iterable[Callable[[], None]]) -> None:
            self._asking = False
            for call in calls:
                guarded(log)(call)()
            if self._waiting and not self._asking:
                self._ask()

        self._circusd.ask(done, refused, op="processes")

    def _learn(self, told: dict[str, Any]) -> None:
        self._told = told
        self._managed = {}
        for name, watcher in told["watchers"].items():
            for one in watcher["processes"]:
                try:
                    start = peers.start_time(one["pid"])
                except ProcessLookupError:
                    continue
                self._managed[one["pid"]] = _Managed(name, f"{name}:{one['wid']}", start)
        self._learned(told)

    def whois(self, pid: int, answer: Answer) -> None:
        """See `Verbs`. A child's first message may beat the news of its start: so circusd is asked about a new one."""
        found = self._look_up(pid)
        if found is not None:
            answer.give(process=found)
            return
        self.refresh(
            lambda: answer.give(process=self._look_up(pid)),
            lambda refusal: answer.refuse(f"can't tell who pid {pid} is: {refusal.reason}"),
        )

    def _look_up(self, pid: int) -> dict[str, Any] | None:
        # circus makes each process the leader of a session, which its descendants stay in, unless they make their own.
        try:
            pids = [os.getsid(pid), *peers.ancestors(pid)]
        except ProcessLookupError:
            return None
        for candidate in pids:
            managed = self._managed.get(candidate)
            try:
                if managed is not None and peers.start_time(candidate) == managed.start:
                    return {"program": managed.program, "process": managed.process, "pid": candidate}
            except ProcessLookupError:
                continue
        return None

    def processes(self, answer: Answer) -> None:
        """See `Verbs`; a process that is on its way out is none of a program's any more."""
        self.refresh(
            lambda: answer.give(programs=self._describe(), told_to_end=self._told.get("told_to_end", [])),
            lambda refusal: answer.refuse(f"can't learn what runs: {refusal.reason}"),
        )

    def _describe(self) -> dict[str, Any]:
        return {
            name: {
                "numprocesses": watcher.get("wanted", watcher["numprocesses"]),
                "active": watcher["status"] == "active",
                "on_demand": watcher.get("on_demand", False),
                "state": watcher["status"],
                "command": " ".join([str(watcher["cmd"]), *map(str, words(watcher.get("args")))]),
                "places": [
                    {
                        "process": name,
                        "pid": 0,
                        "state": watcher["status"],
                        "spawn_error": watcher.get("spawn_error", ""),
                        "last": watcher.get("last"),
                        "crashes": watcher.get("crashes", 0),
                    }
                ],
                "stderr": watcher["stderr"],
                "stop_signal": self._stop_signal(name) or watcher["stop_signal"],
                "stop_timeout": watcher["graceful_timeout"],
                "processes": [
                    {
                        "pid": one["pid"],
                        "process": f"{name}:{one['wid']}",
                        "started": one["started"],
                        "held": one["held"],
                        "newcomer": one["newcomer"],
                    }
                    for one in watcher["processes"]
                    if not one["stopping"]
                ],
            }
            for name, watcher in self._told["watchers"].items()
        }

    def _stop_signal(self, program: str) -> int | None:
        spec = self.specs.get(program)
        return None if spec is None else spec.stop_signal

    def report(self, pid: int, answer: Answer) -> None:
        """See `Witness`."""
        self._circusd.ask(
            lambda told: answer.give(status=told["wait_status"], stopped=told["stopped"], output=told["output"]),
            lambda refusal: answer.refuse(f"can't tell how pid {pid} ended: {refusal.reason}", silent=refusal.silent),
            op="report",
            pid=pid,
        )

    def start(self, program: str, answer: Answer) -> None:
        """See `Verbs`."""
        attempts = [int(_TRY_AGAIN_FOR / _TRY_AGAIN_AFTER)]
        this = self._starting[program] = object()

        @guarded(log)
        def attempt() -> None:
            if self._starting.get(program) is not this:
                answer.refuse(f"can't start a process of {program}: it is not wanted any more")
                return
            self._circusd.ask(done, refused, op="start", name=program)

        def done(told: dict[str, Any]) -> None:
            log.info("%s: started %s:%s (pid=%s)", program, program, told["wid"], told["pid"])
            answer.give(pid=told["pid"], process=f"{program}:{told['wid']}")

        def refused(refusal: Refusal) -> None:
            attempts[0] -= 1
            # Not after a timeout: circusd may have done it.
            if refusal.passing and not refusal.silent and attempts[0] > 0:
                self._loop.call_later(_TRY_AGAIN_AFTER, attempt)
            else:
                answer.refuse(f"can't start a process of {program}: {refusal.reason}", silent=refusal.silent)

        attempt()

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
        """See `Verbs`."""
        self._settle(program, retire, known, count, kill, patience, None, True, answer, stop_signal)

    def settle_counted(
        self,
        program: str,
        retire: Sequence[int],
        known: Sequence[int],
        count: int,
        kill: bool,
        patience: float,
        size: int,
        proven: bool,
        answer: Answer,
        stop_signal: int | None = None,
    ) -> None:
        """See `Counting`."""
        self._settle(program, retire, known, count, kill, patience, size, proven, answer, stop_signal)

    def _settle(
        self,
        program: str,
        retire: Sequence[int],
        known: Sequence[int],
        count: int,
        kill: bool,
        patience: float,
        size: int | None,
        proven: bool,
        answer: Answer,
        stop_signal: int | None,
    ) -> None:
        def done(told: dict[str, Any]) -> None:
            now = told.get("count", count)
            log.info("%s: %d processes from now on; retired %s", program, now, told["retired"] or "none")
            answer.give(retired=told["retired"], stopped=told["stopped"])

        self._starting.pop(program, None)  # an attempt that is still to come would be one too many
        self._circusd.ask(
            done,
            lambda refusal: answer.refuse(
                f"can't stop processes of {program}: {refusal.reason}", silent=refusal.silent
            ),
            op="settle",
            name=program,
            retire=list(retire),
            known=list(known),
            count=count,
            kill=kill,
            patience=patience,
            signal=stop_signal or self._stop_signal(program),
            size=size,
            proven=proven,
        )

    def claim(self, program: str, pid: int, answer: Answer) -> None:
        """See `Holding`."""
        self._circusd.ask(
            lambda told: answer.give(),
            lambda refusal: answer.refuse(f"can't hold pid {pid} of {program}: {refusal.reason}"),
            op="claim",
            name=program,
            pid=pid,
        )

    def release(
        self,
        program: str,
        pid: int,
        keep: bool,
        kill: Sequence[int],
        patience: float,
        answer: Answer,
        stop_signal: int | None = None,
    ) -> None:
        """See `Holding`."""
        log.info("%s: circus %s pid %d", program, "keeps" if keep else "stops", pid)
        self._circusd.ask(
            lambda told: answer.give(),
            lambda refusal: answer.refuse(
                f"can't release pid {pid} of {program}: {refusal.reason}", silent=refusal.silent
            ),
            op="release",
            name=program,
            pid=pid,
            keep=keep,
            kill=list(kill),
            patience=patience,
            signal=stop_signal or self._stop_signal(program),
        )


def words(args: object) -> Sequence[object]:
    """A watcher's ``args``: circus takes a text as well as a list."""
    return [args] if isinstance(args, str) else args if isinstance(args, list | tuple) else []


def _partial(call: Callable[[Refusal], None], refusal: Refusal) -> Callable[[], None]:
    return lambda: call(refusal)
