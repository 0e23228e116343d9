"""Reloads: feeds `core.rollout` what happens, and performs what it says, by the host's verbs and the kernel."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import msgspec

from sockshare.core import ends, steps
from sockshare.core.cost import Cost
from sockshare.core.errors import ExitStatus, ManagerError, ManagerSilent
from sockshare.core.readiness import Evidence, Expectation
from sockshare.core.records import Answer, Before, Running
from sockshare.core.rollout import Rollout, State, Turn
from sockshare.core.steps import Plan, Process
from sockshare.kernel import processes

from .drain import NO_TCP, Address, Drainer, Left
from .endpoint import Caller
from .giving_up import spare
from .guard import Told
from .hostlink import HostLink
from .introductions import Introductions
from .leftovers import Leftovers
from .observer import Observer
from .registrations import Registrations
from .roster import Known, Managed, Roster
from .stderr import StderrTail
from .verify import Wrong, verify

log = logging.getLogger(__name__)

#: Seconds between two looks at a process that is starting: as long as a new registration may go unnoticed, and serve.
_LOOK_EVERY = 0.004
#: The same between two at whether one that is ready stays so.
_STAYS_EVERY = 0.05
#: Seconds between two looks for a process that the manager is to start by itself.
_FIND_EVERY = 0.1
#: Seconds that a manager has to say how a process ended; the old one is to take over again.
_REPORTED_WITHIN = 1.0
#: Seconds that are waited for the manager's word on whether a process that died was stopped by somebody else; the old
#: one may be held off meanwhile.
_STOPPED_WITHIN = 0.5
#: So many of what a reload told are remembered.
_EVENTS = 1000


class Services(NamedTuple):
    """What a reload works with."""

    host: HostLink
    roster: Roster
    observer: Observer
    registrations: Registrations
    introductions: Introductions
    #: Where the TCP ones of the sockets of these names listen.
    addresses: Callable[[Iterable[str]], list[Address]]
    #: Sends an event (fields of the answer) to who follows; false once it is gone.
    tell: Callable[[Caller, dict[str, Any]], bool]
    leftovers: Leftovers
    #: What there is to be said of the sockets of these names since then (`Guard.tell`).
    reached: Callable[[Iterable[str], float], Told]
    #: What the manager is called: circusd, supervisord.
    manager: str = "its manager"


Ended = Callable[["Reload", dict[str, Any]], None]


class Reload:
    """One running reload of one program.

    Attributes:
        kind: What it is, in the journal.
        answer: What its command was told, once it was.
        events: What its followers were told, for one that can only ask.

    Args:
        ended: Called once, when it is over, with the answer.
        stderr: The file to which the manager writes the program's standard error, if it does.
        leaving: What the reload before left to be drained.
    """

    kind = "reload"

    def __init__(
        self,
        services: Services,
        plan: Plan,
        expectation: Expectation,
        ended: Ended,
        stderr: str | None = None,
        leaving: Iterable[Turn] = (),
    ) -> None:
        self.program = plan.program
        self.key = plan.key
        self._services = services
        self._expectation = expectation
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._leaving = tuple(leaving)
        self._rollout = Rollout(plan, self._leaving)
        self._followers: list[Caller] = []
        self.answer: dict[str, Any] | None = None
        self.events: deque[dict[str, Any]] = deque(maxlen=_EVENTS)
        self._over = False
        self._settling: set[asyncio.Task[None]] = set()
        self._dying: set[asyncio.Task[None]] = set()  # of those that have died, until it is known how
        self._successor: Reload | None = None  # which has superseded this one
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stderr = StderrTail(stderr)
        self._drainers: dict[int, Drainer] = {}
        self._outputs: dict[int, str] = {}  # what new processes wrote last, by pid, where their manager has told
        self._failing: Process | None = None  # of whom the first failure was
        self._kept_from_few: int | None = None
        self._left: set[int] = set()  # the pids of those that are another reload's to drain
        self._verifying: asyncio.Task[None] | None = None
        self._noticed: set[object] = set()  # how the new process was seen to wait for connections
        self._lacking: dict[int, str] = {}  # what new processes were last seen to lack
        self._told = asyncio.Event()
        self._judging = 0  # of how many processes it is found out why they have died
        self._failures = 0  # how many brokers have ended by a bug in it
        self._patience: dict[int, float] = {}  # what those that are given up need of it, once that is known

    @property
    def slot(self) -> str:
        """Which of its kind it is; there is one of each at a time."""
        return self.program

    @property
    def plan(self) -> Plan:
        """What is planned."""
        return self._rollout.plan

    @property
    def cost(self) -> Cost | None:
        """What the ends of old processes have cost; None where nobody was to look."""
        return self._rollout.cost

    @property
    def step(self) -> str:
        """Where it is, for people."""
        return self._rollout.state.value

    @property
    def suspends(self) -> frozenset[int]:
        """The pids whose registrations are this reload's to keep suspended."""
        return self._rollout.suspends

    @property
    def holds_back(self) -> int | None:
        """The pid of the new process that is not to have anything yet that only some may have."""
        return self._rollout.holds_back

    @property
    def draining(self) -> list[Process]:
        """The old processes that take nothing new, and have not ended."""
        return self._rollout.draining

    @property
    def only_drains(self) -> bool:
        """Whether another reload may `supersede` this one."""
        return self._rollout.only_drains

    def follow(self, caller: Caller) -> None:
        """Send *caller* every later event, and the final answer."""
        self._followers = [one for one in self._followers if one.route != caller.route]
        self._followers.append(caller)

    def begin(self) -> None:
        """Begin."""
        for turn in self._leaving:  # whose connections the reload before has watched until now
            if turn.old is not None and not turn.old_gone:
                drainer = self._watch_connections(turn.old.pid)
                if turn.state is State.STOP:
                    drainer.expect_stop()
        self._guard(lambda: self._perform(self._rollout.begin(_now())))

    @classmethod
    def recover(cls, services: Services, record: Running, ended: Ended, running: dict[str, Reload]) -> None:
        """Take up the reload of a broker that was killed, as one of *running* (by slot).

        Raises:
            ValueError: *record* is no record of a reload.
        """
        found, effects = Rollout.recover(record.rollout, _now())
        before = Evidence(record.before.said, record.before.registered)
        reload = cls(services, found.plan, Expectation(record.mode, record.sockets, before), ended)
        reload._rollout = found
        reload._stderr = StderrTail(*record.stderr)
        reload.answer = None if record.answer is None else msgspec.structs.asdict(record.answer)
        reload._failures = record.failures
        log.info("%s: reload taken up again at %s", reload.program, reload.step)
        running[reload.slot] = reload
        for old in found.draining:
            if found.is_stopping(old.pid):
                reload._watch_connections(
                    old.pid, "no broker looked on for a moment after its stop signal"
                ).expect_stop()
        reload._perform(effects)
        for process in found.processes:
            if found.state is not State.ENDED:
                reload._watch(process)
        for process in (*found.awaited, *found.held):
            reload._run(reload._observe(process))

    async def be_told(self) -> None:
        """Have its command told what came of it, without waiting for those that drain still."""
        self._guard(lambda: self._perform(self._rollout.hurry(_now())))
        await self._told.wait()

    def supersede(self) -> list[Turn]:
        """Be over, its command told: the turns for the next reload, whose old processes drain still."""
        self._left = {process.pid for process in self.draining}
        return self._rollout.supersede(_now())

    def end(self, successor: Reload) -> None:
        """Leave the journal after `supersede`; *successor* hears of those that are found to have died just now."""
        self._successor = successor
        self._perform([])

    def cancel(self, reason: str) -> None:
        """Undo it, if the switch has not happened."""
        self._feed(steps.Cancelled(reason))

    def died(self, known: Known) -> None:
        """A process of the program has died."""
        pid = known.identity.pid
        reason = self._services.observer.end_of(pid)
        self._services.observer.let_go(pid)
        drainer = self._drainers.get(pid) if self._rollout.is_replaced(pid) else None
        if drainer is not None or self._rollout.concerns(pid):
            self._dying.add(self._run(self._died(pid, reason, drainer)))
        else:
            self._gone(pid, reason, None)

    async def _died(self, pid: int, reason: str, drainer: Drainer | None) -> None:
        # At once: the kernel soon forgets how its connections have ended.
        cost = None if drainer is None else self._loop.create_task(drainer.cost())
        if self._rollout.concerns(pid):
            self._judging += 1
            try:
                await self._learn_stopped(pid)
            finally:
                self._judging -= 1
        if self._rollout.is_new(pid):
            await self._mourn(pid, reason)
        else:
            self._gone(pid, reason, None if cost is None else await cost)

    def _gone(self, pid: int, reason: str, cost: Cost | None) -> None:
        if self._successor is not None:
            self._successor._gone(pid, reason, cost)
            return
        self._feed(steps.Gone(pid, reason, cost))
        if pid in self._drainers:
            self._drainers.pop(pid).stop()

    async def _learn_stopped(self, died: int | None = None) -> None:
        """Ask the manager which processes it was told to stop by others: they have not failed."""
        try:
            asked = self._services.host.ask("processes")
            answer = await asyncio.wait_for(asked, _STOPPED_WITHIN)
        except (ManagerError, TimeoutError, asyncio.TimeoutError) as error:
            log.debug("%s: can't tell what the manager has stopped: %r", self.program, error)
            return
        stopped = answer.get("programs", {}).get(self.program, {}).get("stopped", ())
        if died is not None and died in answer.get("told_to_end", ()) and self._rollout.is_new(died):
            stopped = [*stopped, died]  # an old one is what circus's own reload stops
        for pid in stopped:
            self._feed(steps.Stopped(pid))

    async def _mourn(self, pid: int, reason: str) -> None:
        """The new process *pid* is gone: what its manager saw of that goes before the *reason* that we saw."""
        report: Mapping[str, Any] = {}
        old_waits = self._rollout.is_waited_for(pid)
        if old_waits:  # to serve again, and with it those who connect: not for a manager's words
            self._gone(pid, reason, None)
        self._judging += not old_waits
        try:
            report = await self._services.host.ask("report", within=_REPORTED_WITHIN, pid=pid)
        except ManagerError as error:  # a host of the version before, or one that is busy
            log.info("%s: %s", self.program, error)
        finally:
            self._judging -= not old_waits
        if "output" in report:
            self._outputs[pid] = str(report["output"])
        if report.get("stopped") or report.get("status") is not None:
            manager = self._services.manager
            seen, reason = (
                reason,
                ends.describe(report.get("status"), stopped=bool(report.get("stopped")), manager=manager),
            )
            self._rollout.amend(pid, seen, reason)
        if not old_waits:
            self._gone(pid, reason, None)

    def _last_lines(self, process: Process | None) -> str:
        """What *process* wrote last, or else what the program's file has since one was last started."""
        output = None if process is None else self._outputs.get(process.pid)
        return self._stderr.read() if output is None else output

    def said(self, managed: Managed) -> None:
        """*managed* said that it is ready."""
        self._run(self._look(managed))

    # Performing effects.

    def _feed(self, event: steps.Event) -> None:
        self._guard(lambda: self._perform(self._rollout.feed(event, _now())))

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """Nothing would bring the reload on its way any more: end this broker, and let the next one take it up where it
        stands, or give it up."""
        if not self._over:
            self._failures += 1
            self._journal()
        self._loop.call_exception_handler({"message": f"{self.program}: its reload has a bug", "exception": error})

    def _perform(self, effects: list[steps.Effect]) -> None:
        # The record first: a broker killed between two effects is followed by one that performs them again.
        if self._rollout.state is not State.ENDED:
            self._journal()
        self._keep_from_few()
        for effect in self._judged(effects):
            if isinstance(effect, steps.Start):
                self._run(self._start(effect))
            elif isinstance(effect, steps.Find):
                self._run(self._find(effect))
            elif isinstance(effect, steps.HoldBack):
                self._services.registrations.suspend(effect.pid, self._expectation.sockets)
            elif isinstance(effect, steps.Suspend):
                newcomer = self._rollout.successor_of(effect.pid)
                successor = None if newcomer is None else newcomer.pid
                suspended = self._services.registrations.suspend(effect.pid, self._expectation.sockets, successor)
                self._watch_connections(effect.pid)
                self._run(self._switch(effect.pid, suspended))
            elif isinstance(effect, steps.Verify):
                self._verifying = self._run(self._verify(effect.pid))
            elif isinstance(effect, steps.HandOver):
                self._hand_over(effect)
            elif isinstance(effect, steps.Drain):
                self._watch_connections(effect.pid).end_idle()
            elif isinstance(effect, steps.Resume):
                if effect.pid in self._drainers:
                    self._drainers.pop(effect.pid).stop()  # it keeps its connections
                self._services.introductions.stay(effect.pid)
                self._services.registrations.resume(effect.pid, self._expectation.sockets)
            elif isinstance(effect, steps.TakePlace):
                self._run(self._take_place(effect))
            elif isinstance(effect, steps.Settle):
                if not effect.kill:
                    for pid in effect.retire:
                        self._watch_connections(pid).expect_stop()
                self._settling.add(self._run(self._settle(effect)))
            elif isinstance(effect, steps.Sweep):
                self._run(self._sweep(effect))
            elif isinstance(effect, steps.Report):
                self._report(effect)
            else:
                self._finish(effect)
        if self._rollout.state is State.ENDED:
            self._end()
        elif self._rollout.state is not State.VERIFY and self._verifying not in (None, asyncio.current_task()):
            # Its page is not waited for any more, and must not look like a client's request.
            self._verifying.cancel()
        self._schedule()

    def _judged(self, effects: list[steps.Effect]) -> list[steps.Effect]:
        """*effects*, whose last word says what came of the sockets: a program that nobody reaches is not *done*."""
        if not any(isinstance(effect, steps.Finish) and effect.result == "ok" for effect in effects):
            return effects
        told = self._services.reached(self._expectation.sockets, self._rollout.began)
        judged: list[steps.Effect] = []
        for effect in effects:
            if isinstance(effect, steps.Report) and effect.step == "done":
                step = "failed" if told.unreachable else "done"
                effect = replace(effect, step=step, reason=_joined(told, effect.reason))
            elif isinstance(effect, steps.Finish):
                effect = replace(effect, reason=_joined(told, effect.reason))
                if told.unreachable:
                    effect = replace(effect, result="failed", exit=ExitStatus.NOT_SERVING)
            judged.append(effect)
        return judged

    def _keep_from_few(self) -> None:
        """Hold the new process back from what only some may have, as long as the rollout says."""
        pid = self._rollout.holds_back
        if pid == self._kept_from_few:
            return
        before, self._kept_from_few = self._kept_from_few, pid
        if before is not None and self._rollout.state not in (State.UNDO, State.ENDED):
            self._services.registrations.let_in(before)
        if pid is not None:
            self._services.registrations.hold_back(pid)

    def _journal(self) -> None:
        before = self._expectation.before
        record = Running(
            self._rollout.record(),
            self._expectation.mode,
            self._expectation.sockets,
            Before(frozenset(before.said), frozenset(before.registered)),
            (self._stderr.path, self._stderr.offset),
            None if self.answer is None else Answer(**self.answer),
            self._failures,
        )
        self._services.host.journal(f"{self.kind}:{self.slot}", record)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._rollout.state is State.ENDED:
            return
        # The time-out of the whole means nothing after the switch: once passed it is not waited for again.
        now, expires = _now(), self._rollout.plan.expires
        times = [] if self._rollout.deadline is None else [self._rollout.deadline]
        if expires is not None and expires > now:
            times.append(expires)
        if times:
            self._timer = self._loop.call_later(max(0.0, min(times) - now), self._tick)

    def _tick(self) -> None:
        if not self._judging:  # else what comes of that is next
            self._feed(steps.Tick())

    def _run(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._settling.discard(task)
        self._dying.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def _switch(self, pid: int, suspended: Awaitable[str]) -> None:
        how = await suspended
        # What came meanwhile may have ended the switch: then what undoes the suspension is done after it already.
        if self._rollout.state is State.SWITCH and self._rollout.old is not None and self._rollout.old.pid == pid:
            self._feed(steps.Switched(how))

    async def _start(self, effect: steps.Start) -> None:
        self._services.roster.begin_generation(self.program)
        self._stderr = StderrTail(self._stderr.path)
        self._journal()
        configuration = self._rollout.plan.configuration
        # A host of the version before passes them over, and has one reading and one turn.
        fields: dict[str, Any] = {}
        if configuration is not None:
            fields = {"beside": effect.beside, "configuration": configuration}
        try:
            answer = await self._services.host.ask("start", program=self.program, **fields)
        except ManagerError as error:
            await self._learn_stopped()  # it may be refused for that
            self._feed(steps.StartRefused(str(error), isinstance(error, ManagerSilent), effect.turn))
            return
        await self._started(Process(int(answer["pid"]), str(answer["process"])), effect.turn)

    async def _started(self, process: Process, turn: int) -> None:
        self._feed(steps.Started(process, turn))
        if process in self._rollout.processes:
            self._watch(process)
            await self._observe(process)

    async def _find(self, effect: steps.Find) -> None:
        while self._rollout.state_of(effect.turn) is State.RESPAWN:
            try:
                facts = (await self._services.host.ask("processes"))["programs"].get(self.program)
            except ManagerSilent:
                continue
            except ManagerError as error:
                log.warning("%s: %s", self.program, error)
            else:
                if facts is None or not facts["active"]:
                    self._feed(steps.StartRefused(f"{self.program} was stopped meanwhile", turn=effect.turn))
                    return
                # Another turn may have come to one since it was asked.
                known = {*effect.known, *(process.pid for process in self._rollout.processes)}
                for one in facts["processes"]:
                    if one["pid"] not in known:
                        await self._started(Process(one["pid"], one["process"]), effect.turn)
                        return
            await asyncio.sleep(_FIND_EVERY)

    def _watch(self, process: Process) -> None:
        try:
            self._services.roster.enter(process.pid, self.program, process.name)
        except ProcessLookupError:
            reason = ends.describe(None)
            if self._rollout.is_new(process.pid):
                self._run(self._mourn(process.pid, reason))
            else:
                self._gone(process.pid, reason, Cost(unseen="no broker looked on as it ended"))

    async def _observe(self, process: Process) -> None:
        # No kernel event tells of another process's EPOLL_CTL_ADD, so it is looked for, while the process starts only.
        while process in self._rollout.awaited:
            managed = self._services.roster.managed(process.pid)
            if managed is None:
                return
            await self._look(managed)
            await asyncio.sleep(_LOOK_EVERY)
        await self._see_it_stay(process)

    async def _see_it_stay(self, process: Process) -> None:
        """Look whether any of those lives that were seen to serve: a master starts its workers anew as they die."""
        observer = self._services.observer
        serving = await observer.worker.do(observer.serving, process.pid, self._expectation.sockets)
        while serving and process in self._rollout.held:
            if not any(map(processes.is_same, serving)):
                await self._learn_stopped(process.pid)
                if not processes.alive(process.pid):
                    return  # that is told by itself
                pids = ", ".join(str(pid) for pid, _ in sorted(serving))
                self._feed(steps.Unready(process.pid, f"did not stay ready: what serves in it has ended (pid {pids})"))
                return
            await asyncio.sleep(_STAYS_EVERY)

    async def _look(self, managed: Managed) -> None:
        if not self._awaits(managed.pid):
            return
        evidence = await self._services.registrations.evidence(managed, self._expectation.sockets)
        how = self._expectation.shown_by(evidence)
        if how is None:
            lacking = self._expectation.lacking(evidence, self._rollout.plan.ready_key)
            if lacking != self._lacking.get(managed.pid):
                self._lacking[managed.pid] = lacking
                self._feed(steps.Unready(managed.pid, lacking))
        if how is None and evidence.registered:
            await self._hold_back(managed.pid)
        if how is None or not self._awaits(managed.pid):
            return
        if managed.ready is None:
            managed.ready = how
            self._services.roster.note(managed)
        self._feed(steps.Ready(managed.pid, how))

    def _awaits(self, pid: int) -> bool:
        return any(process.pid == pid for process in self._rollout.awaited)

    async def _hold_back(self, pid: int) -> None:
        """Have *pid* held back, which waits for connections and is not ready: each time that there is more of it."""
        observer = self._services.observer
        found = await observer.worker.do(observer.registrations, pid, self._expectation.sockets)
        seen: set[object] = {pid, *(entry[:3] for entry in found if entry.armed)}
        if self._awaits(pid) and not seen <= self._noticed:
            self._noticed |= seen
            self._feed(steps.Registered(pid))

    async def _settle(self, effect: steps.Settle) -> None:
        if effect.kill:
            effect = await self._spared(effect)
        else:
            for pid in effect.retire:  # once more: a worker may have been forked, and have registered, since the switch
                await self._remember_family(pid)
                await self._services.registrations.suspend(pid, self._expectation.sockets)
        try:
            stopped = await self._have_settled(effect)
        except ManagerError as error:
            self._feed(steps.SettleRefused(str(error), isinstance(error, ManagerSilent), effect.turn))
            return
        # One that dies of its signal accepts nothing more before it comes: its thread is let go when it waits for it.
        if not self._rollout.plan.drain:
            for pid in effect.retire:
                self._services.observer.let_go(pid)
        self._feed(steps.Settled(stopped, effect.turn))

    async def _take_place(self, effect: steps.TakePlace) -> None:
        configuration = self._rollout.plan.configuration
        if configuration is None:
            return  # this manager has no places
        retire, known = ([] if pid is None else [pid] for pid in (effect.pid, effect.newcomer))
        ask = self._services.host.ask
        try:
            await ask("replace", program=self.program, retire=retire, known=known, configuration=configuration)
        except ManagerError as error:  # a host of the version before; `settle` does it too
            log.debug("%s: %s", self.program, error)

    async def _sweep(self, effect: steps.Sweep) -> None:
        try:
            outcome = await self._services.leftovers.end(
                self.program, self._rollout.plan, self._expectation.sockets, effect.pid
            )
        except OSError as error:  # too many open files, as a rule: nothing that another broker could do better
            log.warning("%s: can't look for what is left over: %s", self.program, error)
            self._feed(steps.Swept(of=effect.pid, unseen=error.strerror or str(error)))
            return
        left = "; ".join(f"{one} on {one.socket}: {one.remedy(self.program, runs=False)}" for one in outcome.left)
        ended = ", ".join(map(str, outcome.ended))
        unserved = "" if effect.pid is None else await self._unserved()
        self._feed(steps.Swept(ended, left, effect.pid, outcome.cost, unserved=unserved))

    async def _unserved(self) -> str:
        """The sockets that the old process, which stays, does not serve: it was not seen to as the reload began, nor is
        now. Empty where that can't be seen."""
        before, sockets, old = self._expectation.before, self._expectation.sockets, self._rollout.old
        if old is None or self._expectation.mode == "hold" or before.said or before.registered:
            return ""
        managed = self._services.roster.managed(old.pid)
        if managed is not None:
            now = await self._services.registrations.evidence(managed, sockets, patient=True)
            is_unseen = now.unseen and processes.alive(old.pid)  # one that has just died can't be looked into
            if is_unseen or self._expectation.shown_by(now):
                return ""
        return ", ".join(sorted(sockets))

    async def _remember_family(self, pid: int) -> None:
        """Have the tree of *pid*, which is about to be stopped, known when it is not below it any more."""
        managed = self._services.roster.managed(pid)
        if managed is not None:
            managed.family |= await self._services.observer.worker.do(processes.identified_tree, pid)
            self._services.roster.note(managed)

    async def _have_settled(self, effect: steps.Settle) -> bool:
        """Have the manager do it; whether all of the program was stopped meanwhile."""
        answer = await self._services.host.ask(
            "settle",
            program=self.program,
            retire=list(effect.retire),
            known=list(effect.known),
            count=effect.size,
            kill=effect.kill,
            size=self._rollout.plan.size,
            proven=self._rollout.is_proven,
            patience=effect.patience,
            **self._told_signal(),
        )
        return bool(answer.get("stopped"))

    def _told_signal(self) -> dict[str, int]:
        plan = self._rollout.plan
        return {"stop_signal": plan.stop_signal} if plan.is_told_signal else {}

    async def _spared(self, effect: steps.Settle) -> steps.Settle:
        """*effect* with as much patience as what is given up, and is held back by now, has use for."""
        sockets = self._expectation.sockets
        patience = None
        for pid in effect.retire:  # one, the new process; what else may go is not known
            if pid not in self._patience:
                addresses = self._services.addresses(sockets)
                self._patience[pid] = await spare(
                    pid,
                    self._rollout.plan,
                    addresses,
                    is_all=len(addresses) == len(sockets),
                    is_held_back=partial(self._services.registrations.is_held_back, pid, sockets),
                    patience=effect.patience,
                    outside=self._rollout.may_keep_waiting(_now()),
                )
            patience = self._patience[pid]
        return effect if patience is None else replace(effect, patience=patience)

    def _watch_connections(self, pid: int, unseen: str = "") -> Drainer:
        if pid not in self._drainers:
            sockets = self._expectation.sockets
            addresses = self._services.addresses(sockets)
            unseen = unseen or ("" if len(addresses) == len(sockets) else NO_TCP)
            self._drainers[pid] = Drainer(pid, addresses, unseen=unseen)
            self._run(self._drain(self._drainers[pid]))
        return self._drainers[pid]

    def _hand_over(self, effect: steps.HandOver) -> None:
        def done(how: str) -> None:
            self._feed(steps.Drained(how, effect.pid))

        self._services.introductions.retire(effect.pid, effect.successor, done)

    async def _drain(self, drainer: Drainer) -> None:
        def drained(how: str) -> None:
            if self._drainers.get(drainer.pid) is drainer:
                self._feed(steps.Drained(how, drainer.pid))

        await drainer.run(partial(self._tell_left, drainer.pid), drained)

    def _tell_left(self, pid: int, left: Left) -> None:
        for old in self._rollout.draining:
            if old.pid == pid:
                self._report(steps.Report("drain", old, self._seconds(), str(left)))

    async def _verify(self, pid: int) -> None:
        # Time is the rollout's: it is cancelled when that has gone on without it.
        path = self._rollout.plan.verify.partition(":")[2]
        addresses = self._services.addresses(self._expectation.sockets)
        if not addresses:
            self._feed(steps.VerifyFailed(f"can't verify {self._rollout.plan.verify}: the program has no TCP socket"))
            return
        if self._services.registrations.stands_by(pid, self._expectation.sockets):
            self._feed(steps.Verified("not verified: another process holds the registration"))
            return
        outcome: steps.Event
        try:
            how = await verify(pid, addresses[0], path, lambda: self._exchange_roles(pid, back=True))
            await self._exchange_roles(pid, back=False)
            outcome = steps.Verified(how)
        except Wrong as error:
            outcome = steps.VerifyFailed(f"{self._rollout.plan.verify} failed: {error}")
        except OSError as error:
            outcome = steps.VerifyFailed(f"can't verify {self._rollout.plan.verify}: {error}")
        if self._rollout.newcomer is not None and self._rollout.newcomer.pid == pid:
            self._feed(outcome)

    async def _exchange_roles(self, pid: int, *, back: bool) -> None:
        """While the new process *pid* has yet to answer, the old one serves *back* again: what the new one may do with
        requests is not known."""
        old = self._rollout.old
        if self._rollout.state is not State.VERIFY or old is None or self._rollout.newcomer is None:
            return
        if self._rollout.newcomer.pid == pid:
            serving, waiting = (old.pid, pid) if back else (pid, old.pid)
            self._services.registrations.resume(serving, self._expectation.sockets)
            await self._services.registrations.suspend(waiting, self._expectation.sockets, serving)

    # Telling.

    def _report(self, report: steps.Report) -> None:
        event = {
            "step": report.step,
            "program": self.program,
            "process": report.process.name if report.process else None,
            "pid": report.process.pid if report.process else None,
            "seconds": report.seconds,
            "reason": report.reason,
            **({} if report.cost is None else {"cost": report.cost._asdict()}),
        }
        log.info("%s: reload: %s %s %s", self.program, report.step, event["process"] or "", report.reason)
        if report.step == "failed":
            self._failing = self._failing or report.process
            event["stderr"] = self._last_lines(report.process)
            if self.answer is not None and self.answer["exit"] == ExitStatus.OK:
                # It was said to be done, and what was left of the old version has not ended well: `status` says it.
                before = [self.answer["reason"]] if self.answer["result"] == "failed" else []
                reason = "; ".join([*before, report.reason])
                self.answer = {**self.answer, "result": "failed", "reason": reason}
        if self.answer is not None and self.cost is not None:
            self.answer = {**self.answer, "cost": self.cost._asdict()}
        self.events.append(event)
        self._followers = [one for one in self._followers if self._services.tell(one, {"event": event})]

    def _finish(self, finish: steps.Finish) -> None:
        self.answer = {
            "result": finish.result,
            "exit": int(finish.exit),
            "reason": finish.reason,
            "seconds": self._seconds(),
            "stderr": self._last_lines(self._failing) if finish.exit is not ExitStatus.OK else "",
            "cost": finish.cost and finish.cost._asdict(),
        }
        self._told.set()
        # In this order: whoever was told must find it so when the broker is killed, or the next reload is asked for.
        if self._rollout.state is State.ENDED:
            self._end()
        else:
            self._journal()
        recorded = self._services.host.recorded()
        if recorded is None:
            self._tell_all()
        else:
            recorded.add_done_callback(lambda _: self._tell_all())

    def _tell_all(self) -> None:
        followers, self._followers = self._followers, []
        for follower in followers:
            self._services.tell(follower, {"ok": True, **(self.answer or {})})

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        for drainer in self._drainers.values():
            drainer.stop()
        for process in {*self._rollout.plan.old, *self._rollout.processes}:
            if process.pid not in self._left:
                self._services.observer.let_go(process.pid)
        for task in self._tasks:
            # What the manager was told to have, it is told in any case.
            is_needed = task in self._settling or (self._successor is not None and task in self._dying)
            if task is not asyncio.current_task() and not is_needed:
                task.cancel()
        assert self.answer is not None
        self._ended(self, self.answer)

    def _seconds(self) -> float:
        return round(_now() - self._rollout.began, 3)


def _now() -> float:
    # CLOCK_MONOTONIC, the same for every process since boot: times in the journal mean the same to the next broker.
    return time.monotonic()


def _joined(told: Told, reason: str) -> str:
    return "; ".join(one for one in (told.unreachable or told.mended, reason) if one)
