"""Reloads and retirements: what they do of what the rules say, in which order; their services only write it down."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from sockshare.broker.drain import Address
from sockshare.broker.endpoint import Caller
from sockshare.broker.guard import Told
from sockshare.broker.hostlink import HostLink
from sockshare.broker.introductions import Introductions
from sockshare.broker.leftovers import Leftovers, Outcome
from sockshare.broker.reloading import Reloading
from sockshare.broker.reloads import Reload, Services
from sockshare.broker.retirements import Retirement
from sockshare.broker.roster import Known, Managed
from sockshare.broker.state import State
from sockshare.broker.worker import Worker
from sockshare.core.cost import Cost
from sockshare.core.errors import ManagerSilent
from sockshare.core.readiness import Evidence, Expectation
from sockshare.core.records import Before, Learned, Records, Running
from sockshare.core.steps import Plan, Process
from sockshare.kernel.peers import Identity

# No process has these pids: the largest there can be is 4194304 (proc(5)).
OLD, NEW = Process(5000011, "web:1"), Process(5000021, "web:2")
PLAN = Plan("web", "key", (OLD,), 1, 30.0, 0.0, 0.0, 30.0, "nothing")
CALLER = Caller(b"command", 1, 0, 1)
DEADLINE = 20.0


class World:
    """What a reload works with; `done` is what it did, in order."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.addresses: list[Address] = []
        self.told = Told("", "")
        self.new = NEW  # what the manager starts
        self.full: asyncio.Future[None] | None = None  # until the host has read what it was told
        self.report: dict[str, Any] = {}  # what it says of the new one's end
        self.processes: dict[str, Any] = {}  # what it says of all
        self.answers = asyncio.Event()  # whether the manager does
        self.answers.set()
        self.worker = Worker("observer")
        self._managed: dict[int, Managed] = {}

    # The host.

    def journal(self, key: str, record: object) -> None:
        fields = {} if record is None else msgspec.to_builtins(record)
        self.done.append(("journal", key, fields.get("rollout", fields).get("state")))

    async def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        within = fields.pop("within", None)
        self.done.append((verb, fields))
        try:
            await asyncio.wait_for(self.answers.wait(), within)
        except asyncio.TimeoutError:
            raise ManagerSilent("silent") from None
        if verb == "report":
            return self.report
        if verb == "processes":
            return self.processes
        return {"pid": self.new.pid, "process": self.new.name} if verb == "start" else {}

    # The roster, the observer, the introductions.

    def enter(self, pid: int, program: str, name: str) -> Managed:
        return self._managed.setdefault(pid, Managed(pid, program, name, 1))

    def managed(self, pid: int) -> Managed | None:
        return self._managed.get(pid)

    def begin_generation(self, program: str) -> None: ...

    def note(self, managed: Managed) -> None: ...

    def end_of(self, pid: int) -> str:
        return "has died"

    def let_go(self, pid: int) -> None: ...

    def stay(self, pid: int) -> None: ...

    def recorded(self) -> asyncio.Future[None] | None:
        return self.full

    # The registrations.

    async def evidence(self, managed: Managed, sockets: Iterable[str], *, patient: bool = False) -> Evidence:
        return Evidence(frozenset(), frozenset())

    def suspend(self, pid: int, sockets: Iterable[str], successor: int | None = None) -> asyncio.Future[str]:
        self.done.append(("suspend", pid))
        suspended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        suspended.set_result("suspended")
        return suspended

    def resume(self, pid: int, sockets: Iterable[str]) -> None:
        self.done.append(("resume", pid))

    def hold_back(self, pid: int) -> None: ...

    def let_in(self, pid: int) -> None: ...

    async def end(self, program: str, plan: Plan, names: Iterable[str], of: int | None) -> Outcome:
        self.done.append(("swept", of))
        return Outcome([], [])

    async def is_held_back(self, pid: int, sockets: Iterable[str]) -> bool:
        return True

    @property
    def services(self) -> Services:
        one = cast(Any, self)
        return Services(
            one, one, one, one, one, lambda names: self.addresses, self._tell, one, self._reached, "supervisord"
        )

    def _reached(self, names: Iterable[str], since: float) -> Told:
        return self.told

    def _tell(self, caller: Caller, fields: dict[str, Any]) -> bool:
        self.done.append(("told", fields.get("event", {}).get("step"), fields))
        return True

    # What a test wants to know.

    def asked(self, verb: str) -> list[dict[str, Any]]:
        """The fields of each question *verb* to the manager."""
        return [one[1] for one in self.done if one[0] == verb]

    def before(self, what: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """What was done before *what*, the last of its kind."""
        last = max(at for at, one in enumerate(self.done) if one[: len(what)] == what)
        return self.done[:last]

    async def until(self, condition: Callable[[], object], what: str) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINE
        while not condition():
            assert loop.time() < deadline, f"not within {DEADLINE} s: {what}; {self.done}"
            await asyncio.sleep(0.002)


class Several(World):
    """Its manager starts one of *news* after the other."""

    def __init__(self, news: Iterable[Process]) -> None:
        super().__init__()
        self._news = iter(news)

    async def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        if verb == "start":
            self.new = next(self._news)
        return await super().ask(verb, **fields)


class Case:
    """One reload of *plan*, or another *kind* of it."""

    def __init__(self, world: World, plan: Plan = PLAN, kind: type[Reload] = Reload) -> None:
        self.world = world
        expectation = Expectation("hold", frozenset(("web",)), Evidence(frozenset(), frozenset()))
        self.answers: list[dict[str, Any]] = []
        self.reload = kind(world.services, plan, expectation, self._ended)
        self.reload.follow(CALLER)
        self.reload.begin()

    def _ended(self, reload: Reload, answer: dict[str, Any]) -> None:
        self.world.done.append(("ended",))
        self.answers.append(answer)

    async def comes_to(self, step: str) -> None:
        await self.world.until(lambda: self.reload.step == step, step)

    def dies(self, process: Process) -> None:
        self.reload.died(Known(Identity(process.pid, 1, 1), -1, self.world.managed(process.pid)))


def play(body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        await body(World())

    asyncio.run(main())


def test_old_one_is_suspended_once_more_before_it_is_stopped() -> None:
    """A worker may have been forked, and have registered, since the switch."""

    async def body(world: World) -> None:
        case = Case(world)
        await world.until(lambda: world.asked("settle"), "it is to be stopped")
        assert world.before(("settle",)).count(("suspend", OLD.pid)) == 2
        case.dies(OLD)
        await world.until(lambda: case.answers, "it is over")
        assert case.answers[0]["result"] == "ok"

    play(body)


class Short(World):
    """Its broker has no descriptor left to look with."""

    async def end(self, program: str, plan: Plan, names: Iterable[str], of: int | None) -> Outcome:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_what_is_left_over_and_cannot_be_looked_for_is_said_and_ends_no_broker() -> None:
    """The reload is not done; the next broker would have no more descriptors."""

    async def body() -> None:
        world = Short()
        case = Case(world)
        await world.until(lambda: world.asked("settle"), "it is to be stopped")
        case.dies(OLD)
        await world.until(lambda: case.answers, "it is over")
        assert (case.answers[0]["result"], case.answers[0]["exit"]) == ("failed", 3)
        assert "can't see whether anything that is left of the old one does" in case.answers[0]["reason"]

    asyncio.run(body())


@pytest.mark.parametrize(
    ("effect", "state"),
    [(("start",), "start"), (("suspend", OLD.pid), "switch"), (("settle",), "stop"), (("resume", OLD.pid), "undo")],
)
def test_where_it_stands_is_recorded_before_anything_is_done(effect: tuple[Any, ...], state: str) -> None:
    """A broker that is killed in between is followed by one that does it again, or undoes it."""

    async def body(world: World) -> None:
        # An undo needs a new one that dies before the old one has its signal.
        case = Case(world, PLAN._replace(quiesce=60.0) if state == "undo" else PLAN)
        if state == "undo":
            await case.comes_to("quiesce")
            case.dies(NEW)
        await world.until(lambda: any(one[: len(effect)] == effect for one in world.done), state)
        first = next(at for at, one in enumerate(world.done) if one[: len(effect)] == effect)
        lines = [one for one in world.done[:first] if one[0] == "journal"]
        assert lines[-1] == ("journal", "reload:web", state)

    play(body)


@pytest.mark.parametrize(
    ("told", "result", "status", "step"),
    [
        (Told("clients don't reach web: it is gone", "web: it was mended"), "failed", 3, "failed"),
        (Told("clients don't reach web: it is gone", ""), "failed", 3, "failed"),
        (Told("", "web: it was mended"), "ok", 0, "done"),
    ],
)
def test_reload_after_which_nobody_reaches_the_program_is_not_done(
    told: Told, result: str, status: int, step: str
) -> None:
    """The last step and the answer have the reason; what was mended while it ran is said too."""

    async def body(world: World) -> None:
        world.told = told
        case = Case(world)
        await world.until(lambda: world.asked("settle"), "it is to be stopped")
        case.dies(OLD)
        await world.until(lambda: case.answers, "it is over")
        reason = told.unreachable or told.mended
        assert [case.answers[0][key] for key in ("result", "exit")] == [result, status]
        assert case.reload.events[-1]["step"] == step
        for said in (case.answers[0], case.reload.events[-1]):  # before what is said besides, of connections
            assert said["reason"].startswith(f"{reason}; can't see whether")

    play(body)


def test_outcome_is_kept_before_the_command_is_told() -> None:
    """Whoever was told must find it so when he asks again."""

    async def body(world: World) -> None:
        case = Case(world)
        await world.until(lambda: world.asked("settle"), "it is to be stopped")
        case.dies(OLD)
        await world.until(
            lambda: case.answers and any(one[0] == "told" and one[2].get("ok") for one in world.done), "it is over"
        )
        told = next(at for at, one in enumerate(world.done) if one[0] == "told" and one[2].get("ok"))
        assert world.done.index(("ended",)) < told

    play(body)


def test_command_is_told_only_what_the_host_has_read() -> None:
    """A host that does not read knows nothing of the outcome yet: what its next broker would find is as before."""

    async def body(world: World) -> None:
        case = Case(world)
        await world.until(lambda: world.asked("settle"), "it is to be stopped")
        world.full = asyncio.get_running_loop().create_future()
        case.dies(OLD)
        await world.until(lambda: case.answers, "it is over")
        assert not any(one[0] == "told" and one[2].get("ok") for one in world.done)
        world.full.set_result(None)
        await world.until(lambda: any(one[0] == "told" and one[2].get("ok") for one in world.done), "it is told")

    play(body)


def test_new_one_that_is_given_up_has_its_time() -> None:
    """It drains itself on its stop signal: the manager is to wait as long for it as it may need."""

    async def body(world: World) -> None:
        # This process has a handler for SIGINT, which is looked up.
        world.new = Process(os.getpid(), "web:2")
        case = Case(world, PLAN._replace(ready_hold=60.0, stop_signal=int(signal.SIGINT), stop_timeout=7.5))
        await case.comes_to("hold")
        case.reload.cancel("the command was interrupted")
        await world.until(lambda: world.asked("settle"), "it is given up")
        (fields,) = world.asked("settle")
        assert (fields["kill"], fields["retire"], fields["patience"]) == (True, [world.new.pid], 7.5)
        case.dies(world.new)
        await world.until(lambda: case.answers, "it is over")

    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        play(body)
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("step", ["hold", "quiesce"])
@pytest.mark.parametrize(
    ("report", "reason", "stderr"),
    [
        ({"status": 3 << 8, "stopped": False, "output": "why"}, "web:2 (pid 5000021) exited with status 3", "why"),
        ({"status": 9, "stopped": True, "output": ""}, "web:2 (pid 5000021) was stopped by supervisord", ""),
        ({}, "web:2 (pid 5000021) has died", ""),
    ],
)
def test_reason_is_what_the_manager_saw_of_its_end(step: str, report: dict[str, Any], reason: str, stderr: str) -> None:
    """Its status, who wanted it, its last lines: before the switch, and after it, when the old one can't wait."""

    async def body(world: World) -> None:
        world.report = report
        case = Case(world, PLAN._replace(ready_hold=60.0 if step == "hold" else 0.0, quiesce=60.0))
        await case.comes_to(step)
        case.dies(NEW)
        await world.until(lambda: case.answers, "it is over")
        assert case.answers[0]["reason"] == reason
        assert case.answers[0]["stderr"] == stderr

    play(body)


def test_new_one_that_circus_has_told_to_end_is_not_blamed() -> None:
    """An old one that circus has told to end is what its own reload stops: nothing is to be said of it."""

    async def body(world: World) -> None:
        world.processes = {"told_to_end": [NEW.pid, OLD.pid]}
        case = Case(world, PLAN._replace(ready_hold=60.0))
        await case.comes_to("hold")
        case.dies(NEW)
        await world.until(lambda: case.answers, "it is over")
        assert case.answers[0]["reason"] == f"web:2 (pid {NEW.pid}) was stopped by its manager meanwhile"
        case = Case(world, PLAN._replace(quiesce=60.0))
        await case.comes_to("quiesce")
        case.dies(OLD)
        await world.until(lambda: len(world.asked("settle")) > 1, "it is settled")
        await world.until(lambda: case.answers, "it is over")
        assert "was stopped" not in case.answers[0]["reason"]

    play(body)


def test_no_time_passes_while_it_is_found_out_why_the_new_one_has_died() -> None:
    """It would take over, dead as it is, if its time to stay alive ended meanwhile."""

    async def body(world: World) -> None:
        case = Case(world, PLAN._replace(ready_hold=0.2))
        await case.comes_to("hold")
        world.answers.clear()
        case.dies(NEW)
        late = time.monotonic() + 0.25
        await world.until(lambda: time.monotonic() > late, "its time has passed")
        world.answers.set()
        await world.until(lambda: case.answers, "it is over")
        assert case.answers[0]["result"] == "rolled_back"
        assert ("suspend", OLD.pid) not in world.done

    play(body)


@contextmanager
def connection() -> Iterator[tuple[Address, socket.socket, socket.socket]]:
    """Where we listen, and the two ends of a connection there: the client's, and ours."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        server = stack.enter_context(listener.accept()[0])
        host, port = listener.getsockname()
        yield Address(int(listener.family), port, host), client, server


def drains() -> bool:
    return any(thread.name.startswith("drain") for thread in threading.enumerate())


def test_old_one_keeps_its_connections_when_the_reload_is_undone() -> None:
    """From the moment at which it is resumed, not only once the new one is gone for good."""

    async def body(world: World) -> None:
        with connection() as (address, client, server):
            world.addresses = [address]
            here = Process(os.getpid(), "web:1")
            plan = PLAN._replace(old=(here,), drain="it would die of its stop signal", drain_timeout=60.0)
            case = Case(world, plan)
            client.sendall(b"request")  # so it is busy
            await case.comes_to("drain")
            world.answers.clear()
            case.dies(NEW)
            await world.until(lambda: ("resume", here.pid) in world.done, "it is resumed")
            assert server.recv(100) == b"request"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
            server.setblocking(False)
            await world.until(lambda: not drains() or ended(server), "nobody looks after its connections")
            assert not ended(server)
            world.answers.set()
            await world.until(lambda: case.answers, "it is over")

    play(body)


def ended(sock: socket.socket) -> bool:
    """Whether the end of file is there to read."""
    try:
        return sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False


def test_end_of_one_that_was_being_stopped_is_looked_at_by_the_next_broker() -> None:
    """It says that nobody did for a moment; never that nothing was cut."""

    async def body(world: World) -> None:
        with connection() as (address, client, server):
            world.addresses = [address]
            here = Process(os.getpid(), "web:1")
            case = Case(world, PLAN._replace(old=(here,)))
            client.sendall(b"request")
            assert server.recv(100) == b"request"
            await world.until(lambda: case.reload.only_drains, "it only drains")
            rollout = case.reload._rollout.record()
            record = Running(rollout, "hold", frozenset(("web",)), Before(frozenset(), frozenset()), (None, 0), None)
            reloads: dict[str, Reload] = {}
            Reload.recover(world.services, record, case._ended, reloads)
            await world.until(lambda: reloads["web"]._drainers[here.pid]._watched, "its connection is watched again")
            server.close()
            reloads["web"].died(Known(Identity(here.pid, 1, 1), -1, world.managed(here.pid)))
            await world.until(lambda: case.answers, "it is over")
            cost = case.answers[0]["cost"]
            assert (cost["cut"], cost["unseen"]) == (1, "no broker looked on for a moment after its stop signal")
            case.dies(here)
            await world.until(lambda: len(case.answers) == 2, "the first one is over, too")

    play(body)


def test_what_is_cut_after_the_command_was_told_is_in_the_last_result() -> None:
    """It was told that one drains still, when what is left over had been looked for; that one answers no more."""

    async def body(world: World) -> None:
        with connection() as (address, client, server):
            world.addresses = [address]
            here = Process(os.getpid(), "web:1")
            case = Case(world, PLAN._replace(old=(here,), cut="it ends too soon"))
            client.sendall(b"request")
            assert server.recv(100) == b"request"
            await world.until(lambda: case.reload.only_drains, "it only drains")
            await world.until(lambda: case.reload._drainers[here.pid]._watched, "its connection is watched")
            await case.reload.be_told()
            assert world.before(("told", "done")).count(("swept", None)) == 1
            answer = dict(case.reload.answer or {})
            assert (answer["result"], answer["exit"], answer["cost"]) == ("ok", 0, None)
            assert "takes nothing new" in answer["reason"]
            server.close()
            case.dies(here)
            await world.until(lambda: case.answers, "it is over")
            [last] = case.answers
            assert (last["result"], last["exit"]) == ("failed", 0)
            assert last["reason"] == f"when web:1 (pid {here.pid}) ended, 1 request was cut: it ends too soon"
            assert last["cost"]["cut"] == 1
            assert world.done.count(("swept", None)) == 2

    play(body)


def test_next_reload_looks_at_the_end_of_what_it_takes_over() -> None:
    """Also of one that has its stop signal already; the journal is the next one's from then on."""

    async def body(world: World) -> None:
        case = Case(world)
        await world.until(lambda: case.reload.only_drains, "it only drains")
        await case.reload.be_told()
        turns = case.reload.supersede()
        world.new = Process(5000022, "web:3")
        expectation = Expectation("hold", frozenset(("web",)), Evidence(frozenset(), frozenset()))
        plan = PLAN._replace(old=(NEW,), max_draining=2, ready_hold=60.0)
        later = Reload(world.services, plan, expectation, case._ended, None, turns)
        later.begin()
        case.reload.end(later)
        assert len(case.answers) == 1
        later.died(Known(Identity(OLD.pid, 1, 1), -1, world.managed(OLD.pid)))
        await world.until(lambda: any(event["step"] == "stop" for event in later.events), "it has ended")
        stop = next(event for event in later.events if event["step"] == "stop")
        assert (stop["pid"], stop["cost"]["unseen"]) == (OLD.pid, "only TCP connections can be judged from outside")

    play(body)


def test_next_reload_hears_of_one_that_died_just_before() -> None:
    """How it ended was being looked at: nobody else would tell, and the next one wait for its end until it fails."""

    async def body(world: World) -> None:
        case = Case(world)
        await world.until(lambda: case.reload.only_drains, "it only drains")
        await case.reload.be_told()
        case.dies(OLD)
        turns = case.reload.supersede()
        world.new = Process(5000022, "web:3")
        expectation = Expectation("hold", frozenset(("web",)), Evidence(frozenset(), frozenset()))
        plan = PLAN._replace(old=(NEW,), max_draining=2, ready_hold=60.0)
        later = Reload(world.services, plan, expectation, case._ended, None, turns)
        later.begin()
        case.reload.end(later)
        await world.until(lambda: any(event["step"] == "stop" for event in later.events), "it has ended")
        assert later.draining == []

    play(body)


def test_each_of_two_that_died_is_followed_by_another() -> None:
    """The manager starts one for each: the second turn does not take what the first has."""

    async def body(_: World) -> None:
        old = (OLD, Process(5000012, "web:3"))
        new = (NEW, Process(5000022, "web:4"))
        world = Several(new)
        next_ones = [{"pid": 5000031, "process": "web:5"}, {"pid": 5000032, "process": "web:6"}]
        world.processes = {"programs": {"web": {"active": True, "processes": []}}}
        case = Case(world, PLAN._replace(old=old, size=2, max_draining=2))
        await world.until(lambda: case.reload.only_drains, "they only drain")
        for process in (*new, *old):
            case.dies(process)
        world.processes["programs"]["web"]["processes"] = next_ones
        await world.until(lambda: case.answers, "it is over")
        taken = [event["pid"] for event in case.reload.events if event["step"] == "start"]
        assert sorted(taken) == [NEW.pid, new[1].pid, 5000031, 5000032]

    play(body)


def test_last_lines_are_those_of_the_process_that_failed() -> None:
    """Not of one that died before, beside it, and was followed by another."""

    async def body(world: World) -> None:
        case = Case(world, PLAN._replace(ready_hold=60.0))
        await case.comes_to("hold")
        case.reload._outputs[5000099] = "of another"
        case.reload.cancel("the command was interrupted")
        await world.until(lambda: world.asked("settle"), "it is given up")
        case.dies(NEW)
        await world.until(lambda: case.answers, "it is over")
        failed = next(event for event in case.reload.events if event["step"] == "failed")
        assert (failed["pid"], failed["stderr"], case.answers[0]["stderr"]) == (NEW.pid, "", "")

    play(body)


def test_manager_goes_on_when_its_own_replacement_serves() -> None:
    """It is told to stop the one that it holds, and to kill nobody."""

    async def body(world: World) -> None:
        Case(world, PLAN._replace(newcomer=NEW), Retirement)
        await world.until(lambda: world.asked("release"), "it is released")
        (fields,) = world.asked("release")
        assert (fields["pid"], fields["keep"], fields["kill"]) == (OLD.pid, False, [])

    play(body)


@pytest.mark.parametrize(("kind", "verb"), [(Reload, "settle"), (Retirement, "release")])
@pytest.mark.parametrize("is_told", [True, False])
def test_manager_is_told_the_signal_on_which_a_known_server_drains(
    kind: type[Reload], verb: str, is_told: bool
) -> None:
    """Where it is another than the manager's own; its section's it knows by itself."""

    async def body(world: World) -> None:
        newcomer = NEW if kind is Retirement else None
        Case(world, PLAN._replace(newcomer=newcomer, stop_signal=3, is_told_signal=is_told), kind)
        await world.until(lambda: world.asked(verb), "it is to be stopped")
        assert world.asked(verb)[0].get("stop_signal") == (3 if is_told else None)

    play(body)


def test_what_nobody_can_judge_is_said_to_be_so() -> None:
    """A program without a TCP socket: the last line says that its end was not looked at, and so does its answer."""

    async def body(world: World) -> None:
        case = Case(world)
        await world.until(lambda: world.asked("settle"), "it is to be stopped")
        case.dies(OLD)
        await world.until(lambda: case.answers, "it is over")
        why = "only TCP connections can be judged from outside"
        assert case.answers[0]["reason"] == f"can't see whether requests were cut: {why}"
        assert case.answers[0]["cost"] == {"cut": 0, "met": 0, "unseen": why, "cause": ""}
        told = [one[2]["event"] for one in world.done if one[:2] == ("told", "done")]
        assert told[0]["cost"] == case.answers[0]["cost"]

    play(body)


@pytest.mark.parametrize(
    ("drain", "cut", "learned"), [("", 2, True), ("", 0, False), ("daphne stops at once on TERM", 2, False)]
)
def test_program_is_remembered_whose_stop_signal_has_cut_requests(drain: str, cut: int, learned: bool) -> None:
    """By the host: the next broker knows it, too. Of one that is drained from outside there is nothing to learn."""

    async def body(world: World) -> None:
        state = SimpleNamespace(learned={})
        reloading = Reloading(
            cast(State, state),
            cast(Introductions, SimpleNamespace()),
            cast(HostLink, world),
            Records(),
            cast(Leftovers, SimpleNamespace()),
        )
        reload = SimpleNamespace(program="web", key="key", cost=Cost(cut), plan=PLAN._replace(drain=drain))
        reloading.running["web"] = cast(Reload, reload)
        reloading.ended(cast(Reload, reload), {"result": "ok"})
        assert (("journal", "learned:web", None) in world.done) is learned
        assert state.learned == ({"web": Learned(cut, 15)} if learned else {})

    play(body)


def test_manager_keeps_what_it_holds_when_its_replacement_fails() -> None:
    """The one that failed goes instead."""

    async def body(world: World) -> None:
        case = Case(world, PLAN._replace(newcomer=NEW, quiesce=60.0), Retirement)
        await case.comes_to("quiesce")
        case.dies(NEW)
        await world.until(lambda: world.asked("release"), "it is released")
        (fields,) = world.asked("release")
        assert (fields["pid"], fields["keep"], fields["kill"]) == (OLD.pid, True, [NEW.pid])

    play(body)


def test_outcome_is_in_the_journal_before_the_reload_is_out_of_it() -> None:
    """Killed between the two, the next broker would not know of it, and a command that asks again begin another."""

    async def body(world: World) -> None:
        nothing = SimpleNamespace()
        reloading = Reloading(
            cast(State, nothing),
            cast(Introductions, nothing),
            cast(HostLink, world),
            Records(),
            cast(Leftovers, nothing),
        )
        reload = cast(Reload, SimpleNamespace(program="web", key="key", cost=None, plan=PLAN))
        reloading.running["web"] = reload
        reloading.ended(reload, {"result": "ok"})
        assert [one[1] for one in world.done] == ["last:web", "reload:web"]
        assert reloading.last["web"]["answer"] == {"result": "ok"}

    play(body)
