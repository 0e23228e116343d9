"""What the broker answers, operation by operation (docs/protocol.md, the dialogue)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from sockshare.core.errors import (
    BadConfiguration,
    ExitStatus,
    ManagerError,
    NotPermitted,
    ProtocolError,
    SockshareError,
    UnknownProgram,
)
from sockshare.core.readiness import Evidence, Expectation
from sockshare.core.spec import ProgramSpec
from sockshare.core.steps import Plan, Process
from sockshare.core.suggest import did_you_mean
from sockshare.kernel import processes

from .endpoint import Caller, Request
from .hostlink import HostLink
from .reloads import Reload
from .status import status_document

if TYPE_CHECKING:
    from .server import Broker

log = logging.getLogger(__name__)

_Operation = Callable[[Caller, Request], Awaitable["dict[str, Any] | None"]]


class Operations:
    """Answers requests on behalf of *broker*; a reload waits until *taken_up*, the broker's recovery, is done."""

    def __init__(self, broker: Broker, link: HostLink, taken_up: asyncio.Task[None]) -> None:
        self._broker = broker
        self._link = link
        self._taken_up = taken_up
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._operations: dict[str, _Operation] = {
            "attach": self._attach,
            "ticket": self._ticket,
            "inherit": self._inherit,
            "ready": self._ready,
            "status": self._status,
            "reload": self._reload,
            "cancel": self._cancel,
        }

    def answer(self, caller: Caller, request: Request) -> None:
        """Answer *request* of *caller*, now or later."""
        if request.op == "ticket" and request.pid is None and not self._broker.mistakes:
            known = self._broker.roster.known(caller.pid)
            if known is not None:  # the common case needs nobody else
                try:
                    self._broker.endpoint.reply(caller, self._broker.issue(known, request.socket, known))
                except SockshareError as error:
                    self._broker.refused(caller.pid, str(error))
                    self._broker.endpoint.fail(caller, error)
                return
        task = self._loop.create_task(self._work(caller, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, caller: Caller, request: Request) -> None:
        try:
            operation = self._operations.get(request.op)
            if operation is None:
                raise ProtocolError(
                    f"can't do {request.op!r}: no such operation{did_you_mean(request.op, self._operations)}"
                )
            if self._broker.mistakes and request.op != "status":
                raise BadConfiguration("\n".join(self._broker.mistakes))
            answer = await operation(caller, request)
            if answer is not None:
                self._broker.endpoint.reply(caller, {"ok": True, **answer})
        except SockshareError as error:
            if isinstance(error, NotPermitted):
                self._broker.refused(caller.pid, str(error))
            self._broker.endpoint.fail(caller, error)
        except Exception as error:  # a bug of ours is the caller's answer, and not the broker's end
            log.exception("broker: %s of pid %d failed", request.op, caller.pid)
            self._broker.endpoint.fail(
                caller, SockshareError(f"can't {request.op}: the broker has a bug ({error!r}; see its log)")
            )

    async def _attach(self, caller: Caller, request: Request) -> dict[str, Any]:
        managed = self._broker.managed_of(await self._broker.roster.identify(caller.pid), caller.pid)
        names = list(self._broker.programs[managed.program].sockets)
        return {"program": managed.program, "process": managed.name, "sockets": names}

    async def _ticket(self, caller: Caller, request: Request) -> dict[str, Any]:
        asking = await self._broker.roster.identify(caller.pid)
        target = asking if request.pid is None else await self._broker.roster.identify(request.pid)
        return self._broker.issue(asking, request.socket, target)

    async def _inherit(self, caller: Caller, request: Request) -> dict[str, Any]:
        known = await self._broker.roster.identify(caller.pid)
        managed = self._broker.managed_of(known, caller.pid)
        names = list(request.sockets or self._broker.programs[managed.program].sockets)
        tickets = [{**self._broker.issue(known, name, known), "inode": self._broker.shared[name][0]} for name in names]
        if request.warning and managed.warning != request.warning:
            log.warning("%s: %s", managed.name, request.warning)
            managed.warning = request.warning
            self._broker.roster.note(managed)
        notify = await self._broker.notify_path(managed)
        return {"program": managed.program, "process": managed.name, "notify": notify, "tickets": tickets}

    async def _ready(self, caller: Caller, request: Request) -> dict[str, Any]:
        managed = self._broker.managed_of(await self._broker.roster.identify(caller.pid), caller.pid)
        self._broker.said(managed, "client", request.status)
        return {}

    async def _status(self, caller: Caller, request: Request) -> dict[str, Any]:
        return {"status": await status_document(self._broker, self._link)}

    async def _reload(self, caller: Caller, request: Request) -> dict[str, Any] | None:
        self._may_command(caller, "reload a program")
        if request.program is None or request.key is None:
            raise ProtocolError("can't reload: the request names no program, or has no key")
        await self._taken_up
        running = self._broker.reloads.get(request.program)
        if running is not None and running.key == request.key:
            running.follow(caller)
            return None
        last = self._broker.last.get(request.program)
        if last is not None and last["key"] == request.key:
            return dict(last["answer"])
        programs = (await self._link.ask("processes"))["programs"]
        spec = self._broker.programs.get(request.program)
        if request.program not in programs:
            raise UnknownProgram(
                f"can't reload {request.program!r}: no such program{did_you_mean(request.program, programs)}"
            )
        if spec is None:
            raise UnknownProgram(
                f"can't reload {request.program!r}: its section does not name any sockets ({self._broker.sockets_key})"
            )
        running = self._broker.reloads.get(request.program)
        if running is not None:
            if running.key == request.key:
                running.follow(caller)
                return None
            raise ManagerError(
                f"can't reload {request.program}: a reload of it is running already (step {running.step})"
            )
        facts = programs[request.program]
        if not facts["active"]:
            raise ManagerError(f"can't reload {request.program}: it is not running; start it by its manager first")
        plan, expectation = self._plan(spec, facts, request)
        if request.dry_run:
            return self._foretell(caller, plan, expectation)
        reload = self._broker.reloads[spec.name] = Reload(
            self._broker.services(), plan, expectation, self._broker.reload_ended, facts.get("stderr")
        )
        reload.follow(caller)
        reload.begin()
        return None

    async def _cancel(self, caller: Caller, request: Request) -> dict[str, Any]:
        self._may_command(caller, "cancel a reload")
        running = self._broker.reloads.get(request.program or "")
        if running is not None and running.key == request.key:
            running.cancel("the command was interrupted")
        return {}

    # Parts of the above.

    def _may_command(self, caller: Caller, what: str) -> None:
        if caller.uid not in (0, self._broker.manager["uid"]):
            raise NotPermitted(
                f"can't {what} as uid {caller.uid}: only root and the manager's uid {self._broker.manager['uid']} may"
            )

    def _plan(self, spec: ProgramSpec, facts: dict[str, Any], request: Request) -> tuple[Plan, Expectation]:
        old: list[Process] = []
        said: frozenset[str] = frozenset()
        registered: frozenset[str] = frozenset()
        for one in facts["processes"]:
            if one.get("stopping"):
                continue
            try:
                managed = self._broker.roster.enter(one["pid"], spec.name, one["process"])
            except ProcessLookupError:
                continue
            old.append(Process(managed.pid, managed.name))
            evidence = self._broker.observer.evidence(managed, spec.sockets)
            said, registered = said | evidence.said, registered | evidence.registered
        expectation = Expectation(spec.ready, frozenset(spec.sockets), Evidence(said, registered))
        plan = Plan(
            program=spec.name,
            key=request.key or "",
            old=tuple(old),
            size=int(facts["numprocesses"]),
            ready_timeout=spec.ready_timeout,
            ready_hold=spec.ready_hold,
            quiesce=spec.quiesce,
            stop_timeout=float(facts["stop_timeout"]),
            awaited=expectation.awaited,
            verify=spec.verify or "",
            drain=self._why_from_outside(spec, facts, old),
            drain_timeout=spec.drain_timeout,
            expires=None if request.timeout is None else time.monotonic() + request.timeout,
        )
        return plan, expectation

    def _why_from_outside(self, spec: ProgramSpec, facts: dict[str, Any], old: list[Process]) -> str:
        """Why the old processes have to be drained from outside; empty when they drain themselves."""
        if spec.drain == "signal":
            return ""
        if spec.drain == "observe":
            return "its section says drain = observe"
        number = int(spec.stop_signal or facts["stop_signal"])
        for process in old:
            try:
                if not processes.catches(process.pid, number):
                    return f"{process.name} would die of signal {number} at once, it has no handler for it"
            except ProcessLookupError:
                continue
        return ""

    def _foretell(self, caller: Caller, plan: Plan, expectation: Expectation) -> dict[str, Any]:
        for process in plan.old:
            refusal = self._broker.observer.refusal(process.pid)
            means = (
                "is suspended before it is stopped"
                if refusal is None
                else f"is stopped, not suspended first ({refusal})"
            )
            reason = f"would start one beside it, wait for {expectation.awaited}; then it {means}"
            event = {"step": "start", "program": plan.program, "process": process.name, "pid": process.pid}
            self._broker.endpoint.reply(caller, {"event": {**event, "seconds": 0.0, "reason": reason}})
        return {
            "result": "ok",
            "exit": int(ExitStatus.OK),
            "reason": "nothing was done (--dry-run)",
            "seconds": 0.0,
            "stderr": "",
        }
