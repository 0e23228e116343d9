"""What the broker answers, operation by operation (docs/protocol.md, the dialogue)."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgspec

from sockshare.core import versions
from sockshare.core.errors import (
    AlreadyRunning,
    BadConfiguration,
    ExitStatus,
    NotPermitted,
    NotRunning,
    ProtocolError,
    SockshareError,
    UnknownProgram,
)
from sockshare.core.names import no_such_program, programs_named
from sockshare.core.readiness import Expectation
from sockshare.core.steps import Plan
from sockshare.core.suggest import did_you_mean
from sockshare.core.turns import Turns
from sockshare.core.visibility import visible, visible_findings
from sockshare.kernel.descriptors import are_gone
from sockshare.kernel.meeting import user
from sockshare.kernel.processes import alive

from . import plans
from .authority import Authority
from .doctor import examine
from .endpoint import HOST, Caller, Request, described, read
from .handout import HandOut
from .hostlink import HostLink
from .leftovers import Leftovers
from .reloading import Reloading
from .retirements import Retirements
from .roster import Managed
from .shared import Shared
from .state import State
from .status import status_document

log = logging.getLogger(__name__)

_Operation = Callable[[Caller, Request], Awaitable["dict[str, Any] | None"]]

#: What the host may ask for, on behalf of somebody whom the manager lets command it.
_FOR_HOST = frozenset({"status", "doctor", "programs", "reload", "cancel", "move", "quiesce", "wake"})


class Operations:
    """Answers requests; made in the running loop.

    Args:
        said: A managed process has said that it is ready, by that means, with that status.
        taken_up: The broker's recovery: a reload waits until it is done.
    """

    def __init__(
        self,
        state: State,
        handout: HandOut,
        reloading: Reloading,
        retirements: Retirements,
        leftovers: Leftovers,
        link: HostLink,
        said: Callable[[Managed, str, str | None], None],
        taken_up: asyncio.Task[None],
        authority: Authority,
    ) -> None:
        self._state = state
        self._handout = handout
        self._reloading = reloading
        self._retirements = retirements
        self._link = link
        self._said = said
        self._taken_up = taken_up
        self._authority = authority
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = Turns()
        self._documents = Shared(lambda: status_document(state, reloading, retirements, leftovers, link))
        self._findings = Shared(lambda: examine(state, reloading, retirements, leftovers, link))
        introductions = handout.introductions
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
            "programs": self._programs,
            "reload": self._reload,
            "cancel": self._cancel,
            "claim": self._claim,
            "release": self._release,
            "move": self._move,
            "quiesce": self._quiesce,
            "wake": self._wake,
        }

    def answer(self, caller: Caller, request: Request, data: bytes) -> None:
        """Answer *request* of *caller*, which came as *data*, now or in its turn."""
        if request.op == "ticket" and request.pid is None and not self._state.mistakes:
            known = self._state.roster.known(caller.pid)
            if known is not None:  # the common case needs nobody else
                try:
                    self._state.reply(caller, self._handout.issue(known, request.socket, known))
                except SockshareError as error:
                    self._state.refused(caller.pid, str(error))
                    self._state.fail(caller, error)
                return
        # As it came, and in one piece: read, it may need ten times as much memory, in pieces that are not given back.
        if self._turns.add(caller.uid, caller.pid, bytes([len(caller.route)]) + caller.route + data):
            self._begin(caller.uid)
            return
        log.warning("endpoint: pid %d (uid %d) asks for more than it may at once", caller.pid, caller.uid)
        busy = f"can't {request.op[:32]}: too many requests of pid {caller.pid}, or of uid {caller.uid}, wait already"
        self._state.fail(caller, SockshareError(busy))

    def _begin(self, uid: int) -> None:
        """Begin what the processes of *uid* may have begun."""
        while (taken := self._turns.take(uid)) is not None:
            pid, item = taken
            start = 1 + item[0]  # a route has at most 255 bytes (zmq_setsockopt(3), ZMQ_ROUTING_ID)
            request = read(memoryview(item)[start:])
            self._run(self._work_in_turn(Caller(item[1:start], pid, uid, request.id), request))

    async def _work_in_turn(self, caller: Caller, request: Request) -> None:
        try:
            await self._work(caller, request)
        finally:
            self._turns.done(caller.uid, caller.pid)
            self._begin(caller.uid)

    def answer_host(self, message: dict[str, Any]) -> None:
        """Answer a question of the host, which asks for who speaks to the manager: supervisord's XML-RPC."""
        self._run(self._work_for_host(message))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work_for_host(self, message: dict[str, Any]) -> None:
        number, op = int(message["id"]), str(message.get("op"))
        mistakes = self._state.mistakes
        try:
            if op == "hello":
                state = "refused" if mistakes else "serving"
                self._link.tell(number, {"ok": True, "pid": os.getpid(), "state": state, "mistakes": mistakes})
                return
            if op not in _FOR_HOST:
                raise ProtocolError(f"can't do {op!r}: the host may not ask for it")
            if mistakes and op != "status":
                raise BadConfiguration("\n".join(mistakes))
            fields = {key: value for key, value in message.items() if key != "type"}
            try:
                request = msgspec.convert({**fields, "v": versions.DIALOGUE}, Request)
            except msgspec.ValidationError as error:
                raise ProtocolError(f"can't read the request: {error}") from None
            # Events can't be sent to it, so it asks again and again, and is told all there were.
            caller = Caller(HOST, os.getpid(), 0, number)
            answer = await self._operations[op](caller, request) or {}
            if op == "reload":
                answer = {"events": self._reloading.events(request.program or "", request.key or ""), **answer}
            self._link.tell(number, {"ok": True, **answer})
        except SockshareError as error:
            self._link.tell(number, {"ok": False, **described(error)})
        except Exception as error:
            log.exception("broker: %s of the host failed", op)
            self._link.tell(number, {"ok": False, **described(SockshareError(f"can't {op}: {_why(error)}"))})

    async def _work(self, caller: Caller, request: Request) -> None:
        try:
            operation = self._operations.get(request.op)
            if operation is None:
                raise ProtocolError(
                    f"can't do {request.op!r}: no such operation{did_you_mean(request.op, self._operations)}"
                )
            if self._state.mistakes and request.op != "status":
                raise BadConfiguration("\n".join(self._state.mistakes))
            answer = await operation(caller, request)
            if answer is not None:
                self._state.reply(caller, {"ok": True, **answer})
        except SockshareError as error:
            if isinstance(error, NotPermitted):
                self._state.refused(caller.pid, str(error))
            self._state.fail(caller, error)
        except Exception as error:  # a bug of ours is the caller's answer, and not the broker's end
            log.exception("broker: %s of pid %d failed", request.op, caller.pid)
            self._state.fail(caller, SockshareError(f"can't {request.op}: {_why(error)}"))

    async def _attach(self, caller: Caller, request: Request) -> dict[str, Any]:
        managed = self._state.managed_of(await self._state.roster.identify(caller.pid), caller.pid)
        names = list(self._state.programs[managed.program].sockets)
        return {"program": managed.program, "process": managed.name, "sockets": names}

    async def _ticket(self, caller: Caller, request: Request) -> dict[str, Any]:
        asking = await self._state.roster.identify(caller.pid)
        target = asking if request.pid is None else await self._state.roster.identify(request.pid)
        return self._handout.issue(asking, request.socket, target)

    async def _inherit(self, caller: Caller, request: Request) -> dict[str, Any]:
        known = await self._state.roster.identify(caller.pid)
        facts, names = await self._handout.begin_program(known, request.sockets or (), request.warning or "")
        tickets = [{**self._handout.issue(known, name, known), "inode": self._state.shared[name][0]} for name in names]
        return {**facts, "tickets": tickets}

    async def _ready(self, caller: Caller, request: Request) -> dict[str, Any]:
        managed = self._state.managed_of(await self._state.roster.identify(caller.pid), caller.pid)
        self._said(managed, "client", request.status)
        return {}

    async def _status(self, caller: Caller, request: Request) -> dict[str, Any]:
        document = await self._documents.get()
        return {"status": visible(document, self._own(caller))}

    async def _doctor(self, caller: Caller, request: Request) -> dict[str, Any]:
        found, document = await self._findings.get()
        return {"findings": [one._asdict() for one in visible_findings(found, document, self._own(caller))]}

    def _own(self, caller: Caller) -> set[str] | None:
        """The programs that run under the user of *caller*, as the last document found them; None if it may see all."""
        if self._authority.sees_everything(caller):
            return None
        roster = self._state.roster
        return {name for name in self._state.programs if any(_runs_as(m, caller.uid) for m in roster.of_program(name))}

    async def _programs(self, caller: Caller, request: Request) -> dict[str, Any]:
        """The programs that are meant by the names of *request*, and of those that were not named themselves the ones
        that do not run: there is nothing to reload."""
        self._authority.check(caller, "reload a program")
        programs = (await self._link.ask("processes"))["programs"]
        processes = _names(programs)
        sharing = [name for name, spec in self._state.programs.items() if spec.sockets]
        meant = programs_named(request.programs or (), processes, sharing)
        stopped = [name for name, by_itself in meant.items() if not by_itself and not programs[name]["active"]]
        if meant and len(stopped) == len(meant):
            raise NotRunning(f"can't reload {' '.join(request.programs or ())}: none of them is running")
        return {"programs": [name for name in meant if name not in stopped], "stopped": stopped}

    async def _reload(self, caller: Caller, request: Request) -> dict[str, Any] | None:
        self._authority.check(caller, "reload a program")
        if not request.program or not request.key:
            raise ProtocolError("can't reload: the request names no program, or has no key")
        await self._taken_up
        if self._is_known(request):
            return self._follow(caller, request)
        programs = (await self._link.ask("processes"))["programs"]
        spec = self._state.programs.get(request.program)
        if request.program not in programs:
            raise UnknownProgram(no_such_program(request.program, _names(programs)))
        if spec is None:
            self._state.check_section(request.program)
            raise UnknownProgram(
                f"can't reload {request.program!r}: its section does not name any sockets ({self._state.sockets_key})"
            )
        facts = programs[request.program]
        before = self._reloading.running.get(spec.name)
        left = {process.pid for process in before.draining} if before is not None and before.only_drains else set()
        if not facts["active"]:
            raise NotRunning(f"can't reload {request.program}: it is not running; start it by its manager first")
        # One that has died is listed until its manager has buried it.
        standing = [
            one
            for one in facts["processes"]
            if not one.get("stopping") and one["pid"] not in left and alive(one["pid"])
        ]
        expires = None if request.timeout is None else time.monotonic() + request.timeout
        plan, expectation = await plans.make(self._state, spec, facts, standing, key=request.key, expires=expires)
        if self._is_known(request):  # it was asked twice
            return self._follow(caller, request)
        running = self._retirements.under_way(request.program)
        if running is not None and not running.only_drains:
            raise AlreadyRunning(
                f"can't reload {request.program}: a reload of it is running already (step {running.step})"
            )
        if not plan.old and not plan.added:
            raise NotRunning(
                f"can't reload {request.program}: no process of it runs just now: its manager stops it, or starts it"
                " again and again; see `sockshare doctor`"
            )
        if request.dry_run:
            events, answer = self._foretell(plan, expectation)
            if caller.route == HOST:
                return {"events": events, **answer}
            for event in events:
                self._state.reply(caller, {"event": event})
            return answer
        before = self._reloading.running.get(spec.name)
        if before is not None and before.answer is None:
            await before.be_told()  # what is left over is its command's to hear of
            return await self._reload(caller, request)
        if any(self._state.roster.managed(old.pid) is None for old in plan.old):
            return await self._reload(caller, request)  # it has died as the plan was made, and nobody would hear of it
        follower = None if caller.route == HOST else caller
        self._reloading.begin(plan, expectation, facts.get("stderr"), follower)
        return None

    def _is_known(self, request: Request) -> bool:
        running, last = (
            self._reloading.running.get(request.program or ""),
            self._reloading.last.get(request.program or ""),
        )
        return request.key in (running and running.key, last and last["key"])

    def _follow(self, caller: Caller, request: Request) -> dict[str, Any] | None:
        """Follow the reload that has the key of *request*; its answer, if it has been given already."""
        running = self._reloading.running.get(request.program or "")
        if running is None or running.key != request.key:
            return dict(self._reloading.last[request.program or ""]["answer"])
        if running.answer is not None:  # all but its last step is over
            return dict(running.answer)
        if caller.route != HOST:
            running.follow(caller)
        return None

    async def _cancel(self, caller: Caller, request: Request) -> dict[str, Any]:
        self._authority.check(caller, "cancel a reload")
        running = self._reloading.running.get(request.program or "")
        if running is not None and running.key == request.key:
            running.cancel("the command was interrupted")
        return {}

    async def _claim(self, caller: Caller, request: Request) -> None:
        known = await self._state.roster.identify(caller.pid)
        managed = self._state.managed_of(known, caller.pid)
        self._state.entitled(known, request.socket)
        assert request.socket is not None
        registrations = self._state.registrations
        one = registrations.claims.claim(
            caller,
            known.identity,
            managed,
            request.socket,
            request.key or "",
            gate=request.gate,
            cooperate=request.cooperate,
            epoch=request.epoch,
        )
        if one.gate is not None and not request.gate:
            ticket = self._handout.gate_ticket(known, request.socket, one.key)
            self._state.reply(caller, {"event": {"gate": ticket}})
        registrations.claims.introduce(one)

    async def _release(self, caller: Caller, request: Request) -> dict[str, Any]:
        known = await self._state.roster.identify(caller.pid)
        name, key = request.socket or "", request.key or ""
        return {"released": await self._state.registrations.claims.release(known.identity, name, key, request.epoch)}

    async def _move(self, caller: Caller, request: Request) -> dict[str, Any]:
        self._authority.check(caller, "move a registration")
        managed, _ = await self._process(request)
        return {"reason": await self._state.registrations.move(request.socket or "", managed)}

    async def _quiesce(self, caller: Caller, request: Request) -> dict[str, Any]:
        self._authority.check(caller, "quiesce a process")
        managed, sockets = await self._process(request)
        return {"reason": await self._state.registrations.quiesce(managed, sockets)}

    async def _wake(self, caller: Caller, request: Request) -> dict[str, Any]:
        self._authority.check(caller, "wake a process")
        managed, sockets = await self._process(request)
        return {"reason": self._state.registrations.wake(managed, sockets)}

    # Parts of the above.

    async def _process(self, request: Request) -> tuple[Managed, tuple[str, ...]]:
        """The managed process that *request* names, and the sockets that it may have; not while it is being replaced.

        Raises:
            UnknownProgram: There is none.
            AlreadyRunning: A reload of its program is running.
        """
        name, names = request.process or "", []
        for program, facts in (await self._link.ask("processes"))["programs"].items():
            spec = self._state.programs.get(program)
            if spec is None:
                continue
            names += [str(one["process"]) for one in facts["processes"]]
            found = [one for one in facts["processes"] if one["process"] == name and not one.get("stopping")]
            live = self._state.roster.enter_all(program, found)
            if not live:
                continue
            running = self._retirements.under_way(program)
            if running is not None:
                raise AlreadyRunning(
                    f"can't do that with {name}: a reload of {program} is running (step {running.step})"
                )
            return live[0], spec.sockets
        raise UnknownProgram(f"can't find process {name!r}: no such process{did_you_mean(name, names)}")

    def _foretell(self, plan: Plan, expectation: Expectation) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        events = []
        for process in plan.old:
            refusal = self._state.observer.refusal(process.pid)
            means = (
                "is suspended before it is stopped"
                if refusal is None
                else f"is stopped, not suspended first ({refusal})"
            )
            reason = f"would start one beside it, wait for {expectation.awaited}; then it {means}"
            if process.pid in plan.surplus:
                reason = f"the configuration has no place for it: nothing would come in its place, and it {means}"
            event = {"step": "start", "program": plan.program, "process": process.name, "pid": process.pid}
            events.append({**event, "seconds": 0.0, "reason": reason})
        if plan.added:
            event = {"step": "start", "program": plan.program, "process": None, "pid": None}
            reason = f"would start {plan.added} more, for which the configuration has places"
            events.append({**event, "seconds": 0.0, "reason": reason})
        return events, {
            "result": "ok",
            "exit": int(ExitStatus.OK),
            "reason": "nothing was done (--dry-run)",
            "seconds": 0.0,
            "stderr": "",
        }


def _names(programs: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of each program's processes, of *programs* as the manager tells of them."""
    return {
        name: [*facts.get("names", ()), *(str(one["process"]) for one in facts["processes"])]
        for name, facts in programs.items()
    }


def _runs_as(managed: Managed, uid: int) -> bool:
    try:
        return user(managed.pid) == uid
    except ProcessLookupError:
        return False


def _why(error: Exception) -> str:
    if are_gone(error):
        return "the broker may open no more descriptors (RLIMIT_NOFILE)"
    return f"the broker has a bug ({error!r}; see its log)"
