"""Introductions: which process may hand connections to which, and the lane for it (docs/handover.md).

The broker makes a lane, gives each side its end by a ticket at the door, and keeps none: connections never pass here,
and lanes outlive it. Who is there it learns anew from the processes, who say what lanes they have.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sockshare.core.errors import NotPermitted, ProtocolError, UnknownProgram
from sockshare.core.steps import Process
from sockshare.core.suggest import did_you_mean
from sockshare.kernel import closing
from sockshare.kernel.lanes import pair

from .endpoint import Caller, Request
from .roster import Known, Managed
from .state import State

log = logging.getLogger(__name__)

#: How the ticket of a lane's end is named.
LANE = "lane:"
#: Seconds for which an end waits for its process.
_PATIENCE = 6.0
#: Ends that wait for one giver at a time: fewer than the tickets that it may have.
_AT_ONCE = 32
#: How many questions of one process stay open.
_OPEN = 256
#: Seconds that a retiring process has to ask what it is to do, when the broker has just started.
_SAYS_WITHIN = 2.0
#: Seconds after a broker's start until it believes that it has heard of all: "nobody is there" is said at once else.
_HEARD_OF_ALL = 1.0


class _Receiver:
    """A process that takes connections."""

    __slots__ = ("caller", "known", "managed")

    def __init__(self, caller: Caller, known: Known, managed: Managed) -> None:
        self.caller = caller
        self.known = known
        self.managed = managed


class _Giver:
    """One question of a process: who takes connections, of *to*?"""

    __slots__ = ("at_door", "caller", "key", "known", "managed", "pid", "program", "to", "waiting")

    def __init__(self, caller: Caller, known: Known, managed: Managed, request: Request, program: str) -> None:
        self.caller = caller
        self.known = known
        self.managed = managed
        self.key = request.key or ""
        self.to = request.to or ""
        self.pid = request.pid  # of a managed process: it, or its children; None: all of the program
        self.program = program
        self.waiting: deque[_Receiver] = deque()  # to be introduced
        self.at_door = 0  # ends that it has not taken yet

    def means(self, receiver: _Receiver) -> bool:
        managed = receiver.managed
        if receiver.known is self.known or managed.program != self.program:
            return False
        return managed.pid == self.pid if self.pid else self.to in (managed.program, managed.name)


class _End:
    """One end of a lane that its process has not taken yet."""

    __slots__ = ("giver", "pid", "sock")

    def __init__(self, sock: socket.socket, pid: int, giver: _Giver | None) -> None:
        self.sock = sock
        self.pid = pid
        self.giver = giver  # whose end it is; None: a receiver's


class _Retirement:
    """A managed process that is to hand its connections over; it, and those of its children that watch for it."""

    __slots__ = ("done", "pending", "successor", "timer", "told")

    def __init__(self, successor: Process | None, done: Callable[[str], None]) -> None:
        self.successor = successor
        self.done = done
        self.told: dict[int, Caller] = {}
        self.pending: set[int] = set()  # who has not said yet that it has
        self.timer: asyncio.TimerHandle | None = None


class Introductions:
    """All of them; made in the running loop.

    Args:
        issue: Makes a ticket of that name for that process: its secret.
    """

    def __init__(self, state: State, issue: Callable[[Known, str], bytes]) -> None:
        self._state = state
        self._issue = issue
        self._loop = asyncio.get_running_loop()
        self._receivers: dict[int, _Receiver] = {}  # by pid
        self._givers: dict[tuple[int, str], _Giver] = {}  # by pid and key
        self._lanes: set[tuple[int, int]] = set()  # pids of giver and receiver that have one, as far as is known
        self._ends: dict[str, _End] = {}
        self._names: dict[bytes, str] = {}  # by secret
        self._numbers = itertools.count(1)
        self._watching: dict[int, Caller] = {}  # who wants to hear that it retires
        self._retiring: dict[int, _Retirement] = {}
        self._complete = self._loop.time() + _HEARD_OF_ALL

    # The operations.

    async def receive(self, caller: Caller, request: Request) -> None:
        """*caller* takes connections."""
        known, managed = await self._who(caller)
        new = caller.pid not in self._receivers
        receiver = self._receivers[caller.pid] = _Receiver(caller, known, managed)
        if new:
            log.info("%s: takes connections (pid=%d)", managed.name, caller.pid)
        self._state.reply(caller, {"event": {"taking": True}})
        for giver in list(self._givers.values()):
            if giver.means(receiver) and (giver.known.identity.pid, caller.pid) not in self._lanes:
                giver.waiting.append(receiver)
                self._advance(giver)

    async def introduce(self, caller: Caller, request: Request) -> None:
        """*caller* wants to hand connections over."""
        if not request.to or not request.key:
            raise ProtocolError("can't introduce anybody: the request names nobody, or has no key")
        known, managed = await self._who(caller)
        program = self._program(request)
        self._permit(managed, program)
        if sum(1 for pid, _ in self._givers if pid == caller.pid) >= _OPEN:
            raise ProtocolError(f"can't introduce more: pid {caller.pid} has asked for {_OPEN} already")
        giver = self._givers[caller.pid, request.key] = _Giver(caller, known, managed, request, program)
        have = set(request.have or ())
        for receiver in self._receivers.values():
            if giver.means(receiver):
                lane = (caller.pid, receiver.known.identity.pid)
                if lane[1] in have:
                    self._lanes.add(lane)
                else:  # it may have ended without the other end's knowing
                    self._lanes.discard(lane)
                giver.waiting.append(receiver)
        self._advance(giver)

    async def retiring(self, caller: Caller, request: Request) -> None:
        """*caller* wants to hear when it is to hand its connections over."""
        _, managed = await self._who(caller)
        self._watching[caller.pid] = caller
        retirement = self._retiring.get(managed.pid)
        if retirement is not None:
            self._tell_to_retire(retirement, [caller])

    async def retired(self, caller: Caller, request: Request) -> dict[str, Any]:
        """*caller* has handed over what it had."""
        _, managed = await self._who(caller)
        self._has_retired(managed.pid, caller.pid)
        return {}

    # For a reload.

    def retire(self, pid: int, successor: Process | None, done: Callable[[str], None]) -> None:
        """Have the managed process *pid* hand its connections to *successor*; *done* is called with what came of it."""
        before = self._retiring.get(pid)
        if before is not None and before.timer is not None:
            before.timer.cancel()
        retirement = self._retiring[pid] = _Retirement(successor, done)
        if not self._tell_to_retire(retirement, self._watchers(pid)):
            why = "not handed over: it does not watch for `retiring`"
            retirement.timer = self._loop.call_later(_SAYS_WITHIN, self._retired, pid, why)

    def stay(self, pid: int) -> None:
        """*pid* is to keep its connections after all."""
        retirement = self._retiring.pop(pid, None)
        if retirement is None:
            return
        if retirement.timer is not None:
            retirement.timer.cancel()
        for caller in retirement.told.values():
            self._state.reply(caller, {"event": {"stay": True}})

    def _tell_to_retire(self, retirement: _Retirement, callers: Iterable[Caller]) -> bool:
        """Whether anybody hears of it."""
        successor = retirement.successor
        named = {"process": successor.name, "pid": successor.pid} if successor else {}
        for caller in callers:
            if self._state.reply(caller, {"event": {"retire": named}}):
                retirement.told[caller.pid] = caller
                retirement.pending.add(caller.pid)
        if retirement.told and retirement.timer is not None:
            retirement.timer.cancel()
            retirement.timer = None
        return bool(retirement.told)

    def _has_retired(self, pid: int, who: int) -> None:
        """*who*, which is *pid* or a child of it, has handed over what it had, or has died."""
        retirement = self._retiring.get(pid)
        if retirement is None or who not in retirement.pending:
            return
        retirement.pending.discard(who)
        if not retirement.pending:
            self._retired(pid, "it has handed over what it had")

    def _watchers(self, pid: int) -> Iterator[Caller]:
        for asked, caller in list(self._watching.items()):
            known = self._state.roster.known(asked)
            if known is not None and known.managed is not None and known.managed.pid == pid:
                yield caller

    def _retired(self, pid: int, how: str) -> None:
        retirement = self._retiring.get(pid)
        if retirement is None:
            return
        if retirement.timer is not None:
            retirement.timer.cancel()
            retirement.timer = None
        retirement.done(how)

    # For the door.

    def descriptor(self, name: str) -> int:
        """The end of a lane that a ticket of *name* is good for.

        Raises:
            LookupError: It waits no longer.
        """
        return self._ends[name].sock.fileno()

    def acknowledged(self, secrets: Sequence[bytes]) -> None:
        """Their processes have the ends."""
        for secret in secrets:
            name = self._names.pop(secret, None)
            if name is not None:
                self._let_go(name)

    def died(self, known: Known) -> None:
        """A process has died."""
        pid = known.identity.pid
        if known.managed is not None and known.managed.pid == pid:
            self._retiring.pop(pid, None)
        elif known.managed is not None:
            self._has_retired(known.managed.pid, pid)
        self._watching.pop(pid, None)
        for key in [key for key in self._givers if key[0] == pid]:
            del self._givers[key]
        self._lanes = {lane for lane in self._lanes if pid not in lane}
        self._leave(pid)

    def _leave(self, pid: int) -> None:
        """*pid* takes no connections any more."""
        receiver = self._receivers.pop(pid, None)
        if receiver is None:
            return
        log.info("%s: takes no more connections (pid=%d)", receiver.managed.name, pid)
        # Its giver would wait for an answer, as long as they are open.
        for name in [name for name, end in self._ends.items() if end.pid == pid and end.giver is None]:
            self._let_go(name)
        for giver in list(self._givers.values()):
            if giver.means(receiver):
                if receiver in giver.waiting:
                    giver.waiting.remove(receiver)
                self._tell(giver, {"gone": pid})

    # Parts of the above.

    async def _who(self, caller: Caller) -> tuple[Known, Managed]:
        known = await self._state.roster.identify(caller.pid)
        managed = known.managed
        if managed is None or managed.program not in self._state.programs:
            who = f"pid {caller.pid}" if managed is None else f"{managed.name} (pid {caller.pid})"
            manager = self._state.manager
            why = (
                f"it is no process that {manager['kind']} (pid {manager['pid']}) runs"
                if managed is None
                else f"the section of {managed.program} has no key of sockshare"
            )
            raise NotPermitted(f"can't hand over connections as {who}: {why}")
        return known, managed

    def _program(self, request: Request) -> str:
        """The program that *request* means, by its own name or that of one of its processes."""
        to = request.to or ""
        programs = self._state.programs
        if to in programs:
            return to
        names = [managed.name for program in programs for managed in self._state.roster.of_program(program)]
        for program in programs:
            if any(managed.name == to for managed in self._state.roster.of_program(program)):
                return program
        # One that is between two lives is nobody's now, and its program is told by its name.
        program = to.partition(":")[0]
        if ":" in to and program in programs:
            return program
        raise UnknownProgram(
            f"can't hand over to {to!r}: no such program or process{did_you_mean(to, [*programs, *names])}"
        )

    def _permit(self, giver: Managed, program: str) -> None:
        if giver.program == program or giver.program in self._state.programs[program].receive_from:
            return
        circus = self._state.manager["kind"] == "circus"
        key, section = ("sockshare.receive_from", "watcher") if circus else ("sockshare_receive_from", "program")
        raise NotPermitted(
            f"can't hand over to {program!r} as {giver.name}: the section of {program} does not let it; "
            f"add {giver.program} to {key} in [{section}:{program}]"
        )

    def _advance(self, giver: _Giver) -> None:
        """Introduce *giver* to those that wait, as far as it has taken what it was given before."""
        while giver.waiting and giver.at_door < _AT_ONCE:
            receiver = giver.waiting.popleft()
            pid = receiver.known.identity.pid
            fields: dict[str, Any] = {"process": receiver.managed.name, "pid": pid}
            lane = (giver.known.identity.pid, pid)
            if lane not in self._lanes:
                try:
                    ends = pair()
                except OSError as error:
                    log.error("%s: no lane to %s: %s", giver.managed.name, receiver.managed.name, error)
                    continue
                number = next(self._numbers)
                ticket = self._ticket(receiver.known, f"{LANE}{number}r", ends[1], None)
                came = {"lane": ticket, "from": giver.managed.name, "pid": lane[0]}
                if not self._state.reply(receiver.caller, {"event": came}):
                    closing.close(ends[0])
                    self._leave(pid)  # it has closed its share, and lives
                    continue
                self._lanes.add(lane)
                fields["lane"] = self._ticket(giver.known, f"{LANE}{number}g", ends[0], giver)
                giver.at_door += 1
            self._tell(giver, {"receiver": fields})
        if not giver.waiting:
            if self._loop.time() < self._complete:
                self._loop.call_at(self._complete, self._advance, giver)
                return
            here = sum(1 for receiver in self._receivers.values() if giver.means(receiver))
            self._tell(giver, {"known": here})

    def _tell(self, giver: _Giver, event: dict[str, Any]) -> None:
        if not self._state.reply(giver.caller, {"event": event}):
            self._givers.pop((giver.known.identity.pid, giver.key), None)

    def _ticket(self, known: Known, name: str, sock: socket.socket, giver: _Giver | None) -> str:
        secret = self._issue(known, name)
        self._names[secret] = name
        self._ends[name] = _End(sock, known.identity.pid, giver)
        self._loop.call_later(_PATIENCE, self._expire, name, secret)
        return secret.hex()

    def _expire(self, name: str, secret: bytes) -> None:
        self._names.pop(secret, None)
        self._let_go(name)

    def _let_go(self, name: str) -> None:
        end = self._ends.pop(name, None)
        if end is None:
            return
        closing.close(end.sock)  # its giver may have sent connections already, and nobody else have it
        if end.giver is not None:
            end.giver.at_door -= 1
            self._advance(end.giver)
