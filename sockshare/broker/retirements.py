"""Processes that the manager itself replaces, by a command of its own: it holds each one back until it is released.

Each is one `Rollout` of one turn, whose new process the manager has started already; they run side by side. In the end
the old one is released: to be stopped, or to be kept while its successor is killed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sockshare.core import steps
from sockshare.core.errors import ExitStatus, ManagerError
from sockshare.core.readiness import Expectation
from sockshare.core.records import Records
from sockshare.core.spec import ProgramSpec
from sockshare.core.steps import Process

from . import plans
from .hostlink import HostLink
from .reloading import TRIES, Reloading
from .reloads import Reload
from .roster import Known, Managed
from .state import State

log = logging.getLogger(__name__)

_JOURNAL = "retirement"


class Retirement(Reload):
    """A reload of one process that the manager holds."""

    kind = _JOURNAL

    @property
    def slot(self) -> str:
        """See `Reload`."""
        return str(self._rollout.plan.old[0].pid)

    async def _start(self, effect: steps.Start) -> None:
        newcomer = self._rollout.plan.newcomer
        assert newcomer is not None
        await self._started(newcomer, effect.turn)

    async def _find(self, effect: steps.Find) -> None:
        # Which of the processes there are then came in whose place, nobody can tell.
        self._feed(steps.StartRefused("the manager starts the next one", turn=effect.turn))

    async def _have_settled(self, effect: steps.Settle) -> bool:
        plan = self._rollout.plan
        if effect.kill or effect.retire:  # else it has died, and the manager needs no telling
            await self._services.host.ask(
                "release",
                program=self.program,
                pid=plan.old[0].pid,
                keep=effect.kill,
                kill=[plan.newcomer.pid] if effect.kill and plan.newcomer is not None else [],
                patience=effect.patience,
                **self._told_signal(),
            )
        return False


class Retirements:
    """All that are running; made in the running loop."""

    def __init__(self, state: State, reloading: Reloading, link: HostLink) -> None:
        self._state = state
        self._reloading = reloading
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, Reload] = {}  # each a Retirement, by slot
        self._taken_up = False
        self._looking: asyncio.Task[None] | None = None
        self._again = False

    def take_up(self, records: Records) -> None:
        """Go on with those of a broker that was killed, and look for what was held since."""
        for slot, record in records.retirements.items():
            try:
                if record.failures >= TRIES:
                    raise ValueError(f"{record.failures} brokers have ended by a bug in it")
                Retirement.recover(self._reloading.services(), record, self._ended, self._running)
            except Exception as error:  # whatever it is, the next broker would meet it too
                log.error("%s: what was to replace it is given up: %r", f"{_JOURNAL}:{slot}", error)
                self._running.pop(slot, None)
                self._link.journal(f"{_JOURNAL}:{slot}", None)
        self._taken_up = True
        self.look()

    def look(self) -> None:
        """Take what the manager holds."""
        self._again = True
        if self._taken_up and self._looking is None:
            self._looking = self._loop.create_task(self._look())

    def of_program(self, program: str) -> Reload | None:
        """One that is running, of *program*."""
        return next((one for one in self._running.values() if one.program == program), None)

    def under_way(self, program: str) -> Reload | None:
        """What replaces processes of *program* now, if anything does: a reload, or one of these."""
        return self._reloading.running.get(program) or self.of_program(program)

    @property
    def running(self) -> list[Reload]:
        """All of them."""
        return list(self._running.values())

    def said(self, managed: Managed) -> None:
        """*managed* said that it is ready."""
        for one in list(self._running.values()):
            if one.program == managed.program:
                one.said(managed)

    def died(self, known: Known) -> None:
        """A managed process has died."""
        for one in list(self._running.values()):
            if known.managed is not None and one.program == known.managed.program:
                one.died(known)

    async def _look(self) -> None:
        try:
            while self._again:
                self._again = False
                for name, facts in (await self._link.ask("processes"))["programs"].items():
                    held = [one for one in facts["processes"] if one.get("held")]
                    if held:
                        await self._take(name, facts, held)
        except ManagerError as error:
            log.error("broker: can't learn what is held: %s", error)
        except Exception:
            log.exception("broker: can't take what is held")
        finally:
            self._looking = None

    async def _take(self, name: str, facts: Mapping[str, Any], held: Sequence[Mapping[str, Any]]) -> None:
        spec = self._state.programs.get(name)
        if self._state.mistakes or spec is None or (not spec.sockets and spec.ready == "auto"):
            has_none = "its section names no sockets, and not what shows that it is ready"
            why = "its configuration has mistakes" if self._state.mistakes else has_none
            log.warning("%s: circus stops processes without a hand-over: %s", name, why)
            for one in held:
                await self._release(name, one["pid"], keep=False)
            return
        if name in self._reloading.running:
            for one in held:
                await self._keep(name, one)
            return
        new = []
        for one in held:
            try:
                await self._link.ask("claim", program=name, pid=one["pid"])
            except ManagerError as error:  # it has died, or its time was over
                log.info("%s: %s", name, error)
                continue
            if str(one["pid"]) not in self._running:
                new.append(one)
        newcomers = [one["newcomer"] for one in new if one["newcomer"]]
        if newcomers and self.of_program(name) is None:
            self._state.roster.begin_generation(name, newcomers)
        batch = f"{time.monotonic():.6f}"
        for one in new:
            await self._begin(spec, facts, one, f"{batch}:{one['pid']}")

    async def _begin(self, spec: ProgramSpec, facts: Mapping[str, Any], one: Mapping[str, Any], key: str) -> None:
        plan, expectation = await plans.make(self._state, spec, facts, [one], key=key)
        if not plan.old:
            return  # it has died
        newcomer = await self._newcomer(spec, facts, one, expectation)
        if spec.name in self._reloading.running:  # since it was asked what is held
            await self._keep(spec.name, one)
            return
        plan = plan._replace(newcomer=newcomer, alone=newcomer is None)
        services, stderr = self._reloading.services(), facts.get("stderr")
        retirement = Retirement(services, plan, expectation, self._ended, stderr)
        self._running[retirement.slot] = retirement
        log.info(
            "%s: circus replaces pid %d by %s", spec.name, one["pid"], newcomer.pid if newcomer else "those there are"
        )
        retirement.begin()

    async def _newcomer(
        self, spec: ProgramSpec, facts: Mapping[str, Any], old: Mapping[str, Any], expectation: Expectation
    ) -> Process | None:
        """What has to be ready before *old* goes; None when what stays is."""
        if old["newcomer"]:
            known = [one for one in facts["processes"] if one["pid"] == old["newcomer"]]
            return Process(old["newcomer"], known[0]["process"] if known else f"{spec.name}:?")
        taken = {one["newcomer"] for one in facts["processes"]}
        taken |= {newcomer.pid for one in self._running.values() if (newcomer := one.plan.newcomer) is not None}
        unready = []
        for one in facts["processes"]:
            if one["held"] or one["pid"] in taken:
                continue
            try:
                managed = self._state.roster.enter(one["pid"], spec.name, one["process"])
            except ProcessLookupError:
                continue
            evidence = await self._state.registrations.evidence(managed, spec.sockets)
            if expectation.shown_by(evidence) is not None and time.time() - one["started"] >= spec.ready_hold:
                return None
            unready.append(Process(managed.pid, managed.name))
        return unready[0] if unready else None

    async def _keep(self, program: str, one: Mapping[str, Any]) -> None:
        # Which of all the processes are to stay is the reload's to say.
        log.warning("%s: circus is to keep pid %d: a reload of it is running already", program, one["pid"])
        await self._release(program, one["pid"], keep=True, kill=[one["newcomer"]] if one["newcomer"] else [])

    async def _release(self, program: str, pid: int, *, keep: bool, kill: Sequence[int] = ()) -> None:
        try:
            await self._link.ask("release", program=program, pid=pid, keep=keep, kill=list(kill), patience=0.0)
        except ManagerError as error:
            log.error("%s: %s", program, error)

    def _ended(self, reload: Reload, answer: dict[str, Any]) -> None:
        del self._running[reload.slot]
        self._reloading.learn(reload)
        if answer["exit"] != ExitStatus.OK:
            log.error("%s: %s: %s", reload.program, answer["result"], answer["reason"])
        if reload.plan.newcomer is not None:
            before = self._reloading.last.get(reload.program)
            batch = reload.key.partition(":")[0]
            # Of several at once, one that failed is what its user has to hear of.
            if answer["exit"] or before is None or before["key"].partition(":")[0] != batch:
                self._reloading.keep_last(reload, answer)
        self._link.journal(f"{_JOURNAL}:{reload.slot}", None)
