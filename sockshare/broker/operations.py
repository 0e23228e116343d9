"""What the broker answers, operation by operation (docs/protocol.md, the dialogue)."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
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
from sockshare.core.readiness import Expectation
from sockshare.core.steps import Plan
from sockshare.core.suggest import did_you_mean

from . import plans
from .doctor import examine
from .endpoint import Caller, Request, described
from .hostlink import HostLink
from .reloads import Reload
from .roster import Managed
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
        introductions = broker.introductions
        self._operations: dict[str, _Operation] = {
            "receive": introductions.receive,
            "introduce": introductions.introduce,
            "retiring": introductions.retiring,
            "retired": introductions.retired,
            "attach": self._attach,
            "ticket": self._ticket,
            "inherit": self._inherit,
            "ready": self._ready,
            "status": self._status,
            "doctor": self._doctor,
            "reload": self._reload,
            "cancel": self._cancel,
            "claim": self._claim,
            "release": self._release,
            "move": self._move,
            "quiesce": self._quiesce,
            "wake": self._wake,
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
        self._run(self._work(caller, request))

    def answer_host(self, message: dict[str, Any]) -> None:
        """Answer a question of the host (`status`, `reload`), which asks for a tool that speaks to the manager."""
        self._run(self._work_for_host(message))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work_for_host(self, message: dict[str, Any]) -> None:
        number, op = int(message["id"]), str(message.get("op"))
        request = Request(v=1, id=number, op=op, program=message.get("program"), key=message.get("key"))
        # Nobody to send events to: the first attempt finds that out.
        caller = Caller(b"", os.getpid(), 0, number)
        try:
            if op not in ("status", "reload"):
                raise ProtocolError(f"can't do {op!r}: the host may not ask for it")
            if self._broker.mistakes and op != "status":
                raise BadConfiguration("\n".join(self._broker.mistakes))
            answer = await self._operations[op](caller, request)
            self._link.tell(number, {"ok": True, **(answer or {})})
        except SockshareError as error:
            self._link.tell(number, {"ok": False, **described(error)})
        except Exception as error:
            log.exception("broker: %s of the host failed", op)
            sentence = f"can't {op}: the broker has a bug ({error!r}; see its log)"
            self._link.tell(number, {"ok": False, "message": sentence})

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
        facts, names = await self._broker.begin_program(known, request.sockets or (), request.warning or "")
        tickets = [{**self._broker.issue(known, name, known), "inode": self._broker.shared[name][0]} for name in names]
        return {**facts, "tickets": tickets}

    async def _ready(self, caller: Caller, request: Request) -> dict[str, Any]:
        managed = self._broker.managed_of(await self._broker.roster.identify(caller.pid), caller.pid)
        self._broker.said(managed, "client", request.status)
        return {}

    async def _status(self, caller: Caller, request: Request) -> dict[str, Any]:
        return {"status": await status_document(self._broker, self._link)}

    async def _doctor(self, caller: Caller, request: Request) -> dict[str, Any]:
        return {"findings": [one._asdict() for one in await examine(self._broker, self._link)]}

    async def _reload(self, caller: Caller, request: Request) -> dict[str, Any] | None:
        self._may_command(caller, "reload a program")
        if not request.program or not request.key:
            raise ProtocolError("can't reload: the request names no program, or has no key")
        await self._taken_up
        if self._is_known(request):
            return self._follow(caller, request)
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
        if self._is_known(request):  # it was asked twice
            return self._follow(caller, request)
        running = self._broker.reloads.get(request.program) or self._broker.retirements.of_program(request.program)
        if running is not None:
            raise ManagerError(
                f"can't reload {request.program}: a reload of it is running already (step {running.step})"
            )
        facts = programs[request.program]
        if not facts["active"]:
            raise ManagerError(f"can't reload {request.program}: it is not running; start it by its manager first")
        standing = [one for one in facts["processes"] if not one.get("stopping")]
        expires = None if request.timeout is None else time.monotonic() + request.timeout
        plan, expectation = plans.make(self._broker, spec, facts, standing, key=request.key, expires=expires)
        if request.dry_run:
            return self._foretell(caller, plan, expectation)
        reload = self._broker.reloads[spec.name] = Reload(
            self._broker.services(), plan, expectation, self._broker.reload_ended, facts.get("stderr")
        )
        reload.follow(caller)
        reload.begin()
        return None

    def _is_known(self, request: Request) -> bool:
        running, last = self._broker.reloads.get(request.program or ""), self._broker.last.get(request.program or "")
        return request.key in (running and running.key, last and last["key"])

    def _follow(self, caller: Caller, request: Request) -> dict[str, Any] | None:
        """Follow the reload that has the key of *request*; its answer, if it has been given already."""
        running = self._broker.reloads.get(request.program or "")
        if running is None or running.key != request.key:
            return dict(self._broker.last[request.program or ""]["answer"])
        if running.answer is not None:  # all but its last step is over
            return dict(running.answer)
        running.follow(caller)
        return None

    async def _cancel(self, caller: Caller, request: Request) -> dict[str, Any]:
        self._may_command(caller, "cancel a reload")
        running = self._broker.reloads.get(request.program or "")
        if running is not None and running.key == request.key:
            running.cancel("the command was interrupted")
        return {}

    async def _claim(self, caller: Caller, request: Request) -> None:
        known = await self._broker.roster.identify(caller.pid)
        managed = self._broker.managed_of(known, caller.pid)
        self._broker.entitled(known, request.socket)
        assert request.socket is not None
        registrations = self._broker.registrations
        one = registrations.claims.claim(
            caller,
            known.identity,
            managed,
            request.socket,
            request.key or "",
            gate=request.gate,
            cooperate=request.cooperate,
        )
        if one.gate is not None and not request.gate:
            ticket = self._broker.gate_ticket(known, request.socket, one.key)
            self._broker.endpoint.reply(caller, {"event": {"gate": ticket}})
        registrations.claims.introduce(one)

    async def _release(self, caller: Caller, request: Request) -> dict[str, Any]:
        known = await self._broker.roster.identify(caller.pid)
        name, key = request.socket or "", request.key or ""
        return {"released": self._broker.registrations.claims.release(known.identity, name, key, request.epoch)}

    async def _move(self, caller: Caller, request: Request) -> dict[str, Any]:
        self._may_command(caller, "move a registration")
        managed, _ = await self._process(request)
        return {"reason": self._broker.registrations.move(request.socket or "", managed)}

    async def _quiesce(self, caller: Caller, request: Request) -> dict[str, Any]:
        self._may_command(caller, "quiesce a process")
        managed, sockets = await self._process(request)
        return {"reason": self._broker.registrations.quiesce(managed, sockets)}

    async def _wake(self, caller: Caller, request: Request) -> dict[str, Any]:
        self._may_command(caller, "wake a process")
        managed, sockets = await self._process(request)
        return {"reason": self._broker.registrations.wake(managed, sockets)}

    # Parts of the above.

    async def _process(self, request: Request) -> tuple[Managed, tuple[str, ...]]:
        """The managed process that *request* names, and the sockets that it may have; not while it is being replaced.

        Raises:
            UnknownProgram: There is none.
            ManagerError: A reload of its program is running.
        """
        name, names = request.process or "", []
        for program, facts in (await self._link.ask("processes"))["programs"].items():
            spec = self._broker.programs.get(program)
            if spec is None:
                continue
            names += [str(one["process"]) for one in facts["processes"]]
            found = [one for one in facts["processes"] if one["process"] == name and not one.get("stopping")]
            live = self._broker.roster.enter_all(program, found)
            if not live:
                continue
            running = self._broker.reloads.get(program) or self._broker.retirements.of_program(program)
            if running is not None:
                raise ManagerError(f"can't do that with {name}: a reload of {program} is running (step {running.step})")
            return live[0], spec.sockets
        raise UnknownProgram(f"can't find process {name!r}: no such process{did_you_mean(name, names)}")

    def _may_command(self, caller: Caller, what: str) -> None:
        if caller.uid not in (0, self._broker.manager["uid"]):
            raise NotPermitted(
                f"can't {what} as uid {caller.uid}: only root and the manager's uid {self._broker.manager['uid']} may"
            )

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
