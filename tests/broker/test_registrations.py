"""The lines of real sockets with real gates and real processes; the host is a fake that keeps what it is told."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from sockshare.broker.endpoint import Caller
from sockshare.broker.gates import Claimant
from sockshare.broker.hostlink import HostLink
from sockshare.broker.observer import Observer
from sockshare.broker.registrations import Registrations
from sockshare.broker.roster import Managed
from sockshare.cli.stage import wait_until
from sockshare.core.errors import NotPermitted, ProtocolError, RegistrationLost, UnknownSocket
from sockshare.core.records import read as read_records
from sockshare.core.registration_steps import Standing
from sockshare.core.spec import SocketSpec
from sockshare.kernel.descriptors import close_all
from sockshare.kernel.gate import Gate
from sockshare.kernel.peers import identity

DEADLINE = 20.0


class Host:
    """What outlives a broker: the journal, the descriptors; and a look at the moment of each journal line."""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}
        self.kept: dict[str, int] = {}
        self.full: asyncio.Future[None] | None = None  # done once what was said is recorded; None: it is
        self.at_each_line: Callable[[], object] = lambda: None
        self.settled: list[dict[str, Any]] = []
        self.programs: dict[str, Any] = {}

    def journal(self, key: str, record: dict[str, Any] | None) -> None:
        if record is None:
            self.records.pop(key, None)
        else:
            self.records[key] = record
        self.at_each_line()

    def keep(self, key: str, fd: int) -> None:
        self.forget(key)
        self.kept[key] = os.dup(fd)

    def forget(self, key: str) -> None:
        close_all([self.kept.pop(key)] if key in self.kept else [])

    def recorded(self) -> asyncio.Future[None] | None:
        return self.full

    async def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        if verb == "settle":
            self.settled.append(fields)
        return {"programs": self.programs}


class World:
    """One socket, a host, brokers one after the other, and children that claim."""

    def __init__(self, policy: str | int, listener: socket.socket, **keys: Any) -> None:
        self.listener = listener
        self.spec = SocketSpec("web", registration=policy, **keys)  # type: ignore[arg-type]
        self.host = Host()
        self.told: list[tuple[bytes, Any]] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self.ended: list[Registrations] = []
        self.broker = self.start_broker()

    def start_broker(self) -> Registrations:
        shared = {"web": (os.fstat(self.listener.fileno()).st_ino, self.listener.fileno())}
        kept = {key: os.dup(fd) for key, fd in self.host.kept.items()}
        return Registrations(
            cast(HostLink, self.host),
            Observer(shared),
            {"web": self.spec},
            shared,
            read_records(self.host.records),
            kept,
            lambda caller, fields: self.told.append((caller.route, fields)),
            lambda name: (),
        )

    def restart(self) -> None:
        """The broker is killed, and the next one begins."""
        self.broker.close()
        self.broker = self.start_broker()

    def child(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        self.children.append(child)
        return child

    def claim(self, key: str, *, cooperate: bool = False, child: subprocess.Popen[bytes] | None = None) -> Claimant:
        child = child or self.child()
        who = identity(child.pid)
        managed = Managed(child.pid, "web", f"web:{len(self.children)}", who.start)
        caller = Caller(key.encode(), child.pid, 0, 1)
        one = self.broker.claims.claim(caller, who, managed, "web", key, gate=False, cooperate=cooperate)
        self.broker.claims.introduce(one)
        self.broker.claims.eligible("web", key)
        return one

    def tally(self, one: Claimant) -> int:
        """The broker's descriptor of it."""
        return self.broker.claims.tally_of(one.key, one.identity)

    def said(self, key: str) -> list[Any]:
        """What the claim *key* was told of its registration."""
        events = [fields.get("event", {}) for route, fields in self.told if route == key.encode()]
        return [event for event in events if "registration" in event]

    def standing(self, key: str) -> Standing | None:
        line = self.broker.line("web")
        assert line is not None
        return line.standing(key)

    def armed(self) -> list[str]:
        """The keys of the claims whose gates are armed, by what the host keeps."""
        found = []
        for key, fd in self.host.kept.items():
            with Gate(os.dup(fd)) as gate:
                if gate.armed():
                    found.append(key.removeprefix("gate:"))
        return found

    async def until(self, condition: Callable[[], object], what: str) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINE
        while not condition():
            assert loop.time() < deadline, f"not within {DEADLINE} s: {what}"
            await asyncio.sleep(0.002)

    def end(self) -> None:
        self.broker.close()
        for child in self.children:
            child.kill()
            child.wait()
        close_all(self.host.kept.values())


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def play(policy: str | int, body: Callable[[World], Awaitable[None]], **keys: Any) -> None:
    """Run *body*; nothing of it is left, not a descriptor either."""

    async def main() -> None:
        with listening() as listener:
            world = World(policy, listener, **keys)
            try:
                await body(world)
            finally:
                world.end()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    # A thread may be at the last of them.
    wait_until(lambda: len(os.listdir("/proc/self/fd")) == before, 10, f"{before} descriptors are open")


A, B, C = "a" * 32, "b" * 32, "c" * 32


def test_the_next_in_line_has_it_when_the_holder_dies() -> None:
    """First come, first served; the dead one's gate is forgotten."""

    async def body(world: World) -> None:
        for key in (A, B, C):
            world.claim(key)
        assert world.armed() == [A]
        world.children[0].kill()
        await world.until(lambda: world.armed() == [B], "the second holds it")
        assert set(world.host.kept) == {f"gate:{B}", f"gate:{C}"}
        world.children[1].send_signal(signal.SIGSTOP)
        world.children[1].kill()
        await world.until(lambda: world.armed() == [C], "the third holds it")

    play("exclusive", body)


@pytest.mark.parametrize(("policy", "most"), [("exclusive", 1), (2, 2), ("rotate", 1), ("latest", 1), ("shared", 3)])
def test_never_more_hold_it_than_may(policy: str | int, most: int) -> None:
    """At every line of the journal, whatever happens: as the gates say, not the rules."""

    async def body(world: World) -> None:
        seen = []
        world.host.at_each_line = lambda: seen.append(len(world.armed()))
        for key in (A, B, C):
            world.claim(key)
        line = world.broker.line("web")
        assert line is not None
        for one in list(line.claimants.values()):
            world.broker.hold_back(one.managed)
            world.broker.let_in(one.managed)
        world.children[0].kill()
        await world.until(lambda: A not in line.claimants, "the first is gone")
        assert max(seen) <= most
        assert 1 <= len(world.armed()) <= most

    play(policy, body)


def test_a_grant_is_recorded_before_it_is_given() -> None:
    """A broker killed between the two is followed by one that knows of it: the other way round nobody would."""

    async def body(world: World) -> None:
        def look() -> None:
            assert set(world.armed()) - dead <= recorded[-1]  # when this line was not written yet
            claims = world.host.records["registration:web"]["claims"]
            recorded.append({one["claim"][0] for one in claims if one["standing"] in ("held", "revoking")})

        dead: set[str] = set()
        recorded: list[set[str]] = [set()]
        world.host.at_each_line = look
        for key in (A, B, C):
            world.claim(key)
        dead.add(A)  # what its gate lets through nobody hears
        world.children[0].kill()
        await world.until(lambda: world.armed() == [B], "the second holds it")
        assert recorded[-1] == {B}

    play("exclusive", body)


def test_a_grant_is_not_given_before_it_is_recorded_by_a_host_that_does_not_read() -> None:
    """Others of the loop go on; and what happens to the claims meanwhile is worked off after it."""

    async def body(world: World) -> None:
        world.claim(A)
        full = world.host.full = asyncio.get_running_loop().create_future()
        second = world.claim(B)
        line = world.broker.line("web")
        assert line is not None
        world.children[0].kill()
        await world.until(lambda: A not in line.claimants, "the first is gone")
        third = world.claim(C)
        assert line.is_busy
        assert world.armed() == []
        released = asyncio.ensure_future(world.broker.claims.release(second.identity, "web", B, 0))
        await asyncio.sleep(0)
        assert not released.done()
        world.host.full = None
        full.set_result(None)
        await asyncio.wait_for(line.settled(), DEADLINE)
        await asyncio.wait_for(released, DEADLINE)
        assert world.armed() == [B]  # it held by then, under another epoch than its release said
        world.broker.hold_back(third.managed)
        assert world.said(C)[0]["registration"] == "waiting"

    play("exclusive", body)


def test_a_broker_killed_at_any_line_of_the_journal_is_followed_by_one_that_agrees_with_the_gates() -> None:
    """At each line: the state as it is then is taken up by another broker, which has at most one gate armed, one that
    its line says."""

    async def body(world: World) -> None:
        moments: list[dict[str, Any]] = []
        world.host.at_each_line = lambda: moments.append(dict(world.host.records))
        for key in (A, B, C):
            world.claim(key)
        line = world.broker.line("web")
        assert line is not None
        second = line.claimants[B]
        await world.broker.move("web", Managed(second.managed, "web", "web:2", second.identity.start))
        world.host.at_each_line = lambda: None
        assert world.armed() == [B]
        assert len(moments) >= 4
        world.broker.close()
        kept = world.host.kept
        for records in moments:
            world.host.records = records
            world.host.kept = {key: os.dup(fd) for key, fd in kept.items()}
            world.broker = world.start_broker()
            holders = [key for key in (A, B, C) if world.standing(key) is Standing.HELD]
            assert len(holders) <= 1
            assert world.armed() == holders
            world.broker.close()
            close_all(world.host.kept.values())
        world.host.kept = kept
        world.broker = world.start_broker()

    play("exclusive", body)


def test_what_a_dead_broker_left_armed_is_swept_before_anything_is_given() -> None:
    """Also when the journal knows nothing of it, and under another number of the socket."""

    async def body(world: World) -> None:
        world.claim(A)
        world.claim(B)
        with Gate(os.dup(world.host.kept[f"gate:{B}"])) as stray:
            duplicate = os.dup(world.listener.fileno())
            stray.arm(duplicate)
            assert set(world.armed()) == {A, B}
            os.close(duplicate)
        world.restart()
        assert world.armed() == [A]

    play("exclusive", body)


def test_a_holder_that_died_while_there_was_no_broker_is_followed_at_once() -> None:
    """And whoever has its pid by then is not taken for it."""

    async def body(world: World) -> None:
        world.claim(A)
        world.claim(B)
        world.broker.close()
        world.children[0].kill()
        world.children[0].wait()
        world.broker = world.start_broker()
        assert world.armed() == [B]
        assert world.standing(A) is None

    play("exclusive", body)


def test_a_stale_epoch_releases_nothing() -> None:
    """A release that was meant for an earlier hold."""

    async def body(world: World) -> None:
        one = world.claim(A)
        line = world.broker.line("web")
        assert line is not None
        entry = line.rules.find(A)
        assert entry is not None
        assert not await world.broker.claims.release(one.identity, "web", A, entry.epoch - 1)
        assert world.armed() == [A]
        assert await world.broker.claims.release(one.identity, "web", A, entry.epoch)
        assert world.armed() == []
        assert world.host.kept == {}

    play("exclusive", body)


def test_latest_cancels_the_former_registration_and_tells_it() -> None:
    """As Winsock does."""

    async def body(world: World) -> None:
        world.claim(A)
        world.claim(B)
        assert world.armed() == [B]
        mine = [fields for route, fields in world.told if route == A.encode()]
        assert mine[-2]["event"]["registration"] == "cancelled"
        assert mine[-1] == {"ok": True, "released": True}
        assert world.standing(A) is None

    play("latest", body)


def test_a_claim_that_was_cancelled_unheard_does_not_cancel_in_turn() -> None:
    """Its process says it again to the next broker, which knows nothing of it any more."""

    async def body(world: World) -> None:
        first = world.claim(A)
        line = world.broker.line("web")
        assert line is not None
        entry = line.rules.find(A)
        assert entry is not None
        world.claim(B)
        world.restart()
        caller, managed = (
            Caller(b"x", first.managed, 0, 1),
            Managed(first.managed, "web", "web:1", first.identity.start),
        )
        with pytest.raises(RegistrationLost):
            world.broker.claims.claim(
                caller, first.identity, managed, "web", A, gate=True, cooperate=False, epoch=entry.epoch
            )
        assert world.armed() == [B]

    play("latest", body)


def test_a_cooperating_holder_that_does_not_let_go_is_stopped_by_its_manager() -> None:
    """That very process, and nobody has the registration before it is dead."""

    async def body(world: World) -> None:
        world.claim(A, cooperate=True)
        world.claim(B)
        line = world.broker.line("web")
        assert line is not None
        first, second = line.claimants[A], line.claimants[B]
        world.host.programs = {
            "web": {"numprocesses": 2, "processes": [{"pid": first.managed}, {"pid": second.managed}]}
        }
        reason = await world.broker.move("web", Managed(second.managed, "web", "web:2", second.identity.start))
        assert reason == "it has the registration as soon as web:1 lets go"
        await world.until(lambda: world.host.settled, "the manager is asked")
        assert world.host.settled[0]["retire"] == [first.managed]
        assert world.armed() == []
        world.children[0].kill()
        await world.until(lambda: world.armed() == [B], "the second holds it")

    play("exclusive", body)


def test_rotate_passes_on_what_was_taken_and_stands_still_without() -> None:
    """By the tallies of the processes: to the one that has taken least, each in turn."""

    async def body(world: World) -> None:
        tallies = {key: world.tally(world.claim(key)) for key in (A, B, C)}
        turns = world.armed()
        for _ in range(6):
            holder = turns[-1]
            os.eventfd_write(tallies[holder], 1)
            await world.until(lambda holder=holder: world.armed() != [holder], "it was passed on")  # type: ignore[misc]
            turns += world.armed()
        assert turns == [A, B, C, A, B, C, A]
        os.eventfd_write(tallies[A], 3)
        await world.until(lambda: world.armed() == [B], "it was passed on")
        for holder, following in ((B, C), (C, B), (B, C), (C, B), (B, C), (C, A)):
            os.eventfd_write(tallies[holder], 1)
            await world.until(lambda following=following: world.armed() == [following], "the one with least")  # type: ignore[misc]
        line = world.broker.line("web")
        assert line is not None
        moves = line.moves
        await asyncio.sleep(0.3)
        assert line.moves == moves

    play("rotate", body)


def test_rotate_passes_on_what_its_holder_does_not_take() -> None:
    """A busy process costs its turn, not the connection."""

    async def body(world: World) -> None:
        for key in (A, B):
            world.claim(key)
        with socket.create_connection(world.listener.getsockname()):
            await world.until(lambda: world.armed() == [B], "it was passed on")

    play("rotate", body)


def test_turns_are_neither_recorded_nor_told_and_a_later_broker_begins_anew() -> None:
    """There may be thousands a second. Who holds it after a restart does so under an epoch above all before."""

    async def body(world: World) -> None:
        tallies = {key: world.tally(world.claim(key)) for key in (A, B)}
        seen: list[object] = []
        world.host.at_each_line = lambda: seen.append(None)
        holder = A
        for _ in range(8):
            os.eventfd_write(tallies[holder], 1)
            holder = B if holder == A else A
            await world.until(lambda holder=holder: world.armed() == [holder], "it was passed on")  # type: ignore[misc]
        assert not seen
        line = world.broker.line("web")
        assert line is not None
        assert [said["registration"] for said in world.said(A)] == ["held"]
        assert [said["registration"] for said in world.said(B)] == ["waiting", "held"]
        last = line.rules.last_epoch
        world.restart()
        line = world.broker.line("web")
        assert line is not None
        assert [entry.epoch > last for entry in line.rules.holders] == [True]
        assert len(world.armed()) == 1

    play("rotate", body)


def test_a_claim_is_refused_that_is_another_process_s_or_none() -> None:
    """Each with its reason; nothing has changed."""

    async def body(world: World) -> None:
        one = world.claim(A)
        with pytest.raises(NotPermitted, match="another claim's"):
            world.claim(A)
        with pytest.raises(ProtocolError, match="32 hexadecimal digits"):
            world.claim("x")
        with pytest.raises(NotPermitted, match="another process's"):
            await world.broker.claims.release(identity(os.getpid()), "web", A, 0)
        with pytest.raises(NotPermitted, match="no such claim"):
            world.broker.claims.may_present(A, identity(os.getpid()))
        with pytest.raises(UnknownSocket):
            await world.broker.move("wbe", Managed(1, "web", "web:1", 1))
        with pytest.raises(NotPermitted, match="has not registered"):
            await world.broker.move("web", Managed(1, "web", "web:1", 1))
        assert await world.broker.claims.release(one.identity, "web", B, 0) is False
        assert world.armed() == [A]

    play("exclusive", body)


def test_a_claim_whose_process_is_dead_is_refused() -> None:
    """Nobody would ever hear that it is over."""

    async def body(world: World) -> None:
        child = world.child()
        who = identity(child.pid)
        child.kill()
        child.wait()
        managed = Managed(child.pid, "web", "web:1", who.start)
        with pytest.raises(NotPermitted, match="it has died"):
            world.broker.claims.claim(
                Caller(b"x", child.pid, 0, 1), who, managed, "web", A, gate=False, cooperate=False
            )
        assert world.host.kept == {}

    play("exclusive", body)


def test_a_gate_that_was_lost_with_the_host_is_taken_back() -> None:
    """Whatever it is armed with is taken out; the holder holds on, the others wait."""

    async def body(world: World) -> None:
        world.claim(A)
        world.claim(B)
        shown = {key: os.dup(world.host.kept[f"gate:{key}"]) for key in (A, B)}
        close_all(world.host.kept.values())
        world.host.kept.clear()
        world.restart()
        assert world.standing(A) is Standing.HELD
        for key in (B, A):
            world.broker.claims.presented(key, shown[key])
        assert world.armed() == [A]
        assert world.standing(B) is Standing.WAITING

    play("exclusive", body)


def test_what_was_taken_for_a_successor_is_given_back_by_the_next_broker_too() -> None:
    """A reload that is rolled back after the broker has died in it; and nothing of it is left in the journal."""

    async def body(world: World) -> None:
        claims = [world.claim(key) for key in (A, B, C)]
        world.broker.suspend(claims[0].managed, ["web"], claims[2].managed)
        assert world.armed() == [C]
        world.restart()
        assert world.armed() == [C]
        world.broker.resume(claims[0].managed, ["web"])
        assert world.armed() == [A]
        assert list(world.host.records) == ["registration:web"]

    play("exclusive", body)


def test_what_was_said_of_a_process_is_forgotten_when_it_died_without_a_broker() -> None:
    """Its pid may be another's by now."""

    async def body(world: World) -> None:
        one = world.claim(A)
        world.broker.quiesce(Managed(one.managed, "web", "web:1", one.identity.start), ["web"])
        assert f"quiesced:{one.managed}" in world.host.records
        world.broker.close()
        world.children[0].kill()
        world.children[0].wait()
        world.broker = world.start_broker()
        assert not world.broker.is_paused(one.managed)
        assert f"quiesced:{one.managed}" not in world.host.records

    play("exclusive", body)


ACCEPTS = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
sock.setblocking(True)
sock.accept()
"""


def test_quiesced_process_is_held_by_the_next_broker_too() -> None:
    """One that waits in accept: its thread was held by the broker that has died, and is let go by that."""

    async def body(world: World) -> None:
        fd = world.listener.fileno()
        child = subprocess.Popen([sys.executable, "-c", ACCEPTS, str(fd)], pass_fds=[fd])
        world.children.append(child)
        observer = world.broker._observer
        await world.until(lambda: bool(observer.waited(child.pid, ["web"])), "it waits")
        managed = Managed(child.pid, "web", "web:1", identity(child.pid).start)
        assert "is held" in await world.broker.quiesce(managed, ["web"])
        await observer.let_go(child.pid)  # as the end of its tracer does
        world.restart()
        assert await world.broker.resume_unclaimed(child.pid, ["web"], held_back=False) == 0
        observer = world.broker._observer
        await world.until(lambda: observer.holds(child.pid), "it is held again")
        assert world.broker.is_quiesced(child.pid)
        assert world.broker.wake(managed, ["web"]) == "it takes part again"
        await world.until(lambda: not observer.holds(child.pid), "it is let go")

    play("shared", body)
