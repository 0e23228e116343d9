"""Who a process is: one that has the pid of another gets nothing that was that one's, and is not stopped for it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from sockshare.broker.handout import HandOut
from sockshare.broker.hostlink import HostLink
from sockshare.broker.roster import Known, Managed, Roster
from sockshare.broker.state import State
from sockshare.core.errors import NotPermitted, TicketRefused
from sockshare.core.records import ProcessFacts, Records
from sockshare.kernel.peers import Identity, Peer, identity
from tests.broker.test_registrations import A, B, Host, World, play

HERE = os.getpid()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await body()

    asyncio.run(main())


def earlier() -> Identity:
    """Who might have had our pid before us."""
    own = identity(HERE)
    return own._replace(start=own.start - 1, inode=own.inode - 1)


def test_ticket_of_an_earlier_process_is_of_no_use_to_a_later_one() -> None:
    """Also while the earlier one's death has yet to be heard of."""

    async def body() -> None:
        managed = Managed(HERE, "web", "web:1", 1)
        known = {"now": Known(earlier(), -1, managed)}
        state = SimpleNamespace(
            roster=SimpleNamespace(known=lambda pid: known["now"]),
            entitled=lambda known, name: None,
            refused=lambda pid, reason: None,
            sockets={"web": SimpleNamespace(registration="shared")},
            shared={"web": (1, 0)},
        )

        async def no_path(managed: Managed) -> str:
            return ""

        handout = HandOut(cast(State, state), no_path)
        pidfd = os.pidfd_open(HERE)
        try:
            ticket = bytes.fromhex(handout.issue(known["now"], "web", known["now"])["ticket"])
            with pytest.raises(TicketRefused):
                handout.redeem([ticket], Peer(HERE, 0, 0), pidfd)
            known["now"] = Known(identity(HERE), -1, managed)
            ticket = bytes.fromhex(handout.issue(known["now"], "web", known["now"])["ticket"])
            assert handout.redeem([ticket], Peer(HERE, 0, 0), pidfd) == [("web", 0)]
        finally:
            os.close(pidfd)

    run(body)


@pytest.mark.parametrize("same", [True, False])
def test_facts_are_of_one_process(same: bool) -> None:
    """What the journal has of a pid counts for the process that it was written of."""

    async def body() -> None:
        own = identity(HERE)
        facts = ProcessFacts(own.start if same else own.start - 1, generation=7, ready="notify", status="s")
        roster = Roster(cast(HostLink, Host()), Records(processes={HERE: facts}), on_death=lambda known: None)
        managed = roster.enter(HERE, "web", "web:1")
        known = roster.known(HERE)
        assert known is not None
        asyncio.get_running_loop().remove_reader(known.pidfd)
        os.close(known.pidfd)
        assert (managed.generation, managed.ready) == ((7, "notify") if same else (1, None))

    run(body)


@pytest.mark.parametrize("same", [True, False])
def test_only_the_process_that_was_meant_is_stopped(same: bool) -> None:
    """The manager's next one may have its pid by the time that it is asked."""

    async def body(world: World) -> None:
        child = world.child()
        start = identity(child.pid).start
        world.host.programs = {"web": {"numprocesses": 1, "processes": [{"pid": child.pid}]}}
        world.broker.stop("web", "web", child.pid, start if same else start - 1, "it hangs")
        await world.until(lambda: not world.broker._stopping, "it was seen to")
        assert [one["retire"] for one in world.host.settled] == ([[child.pid]] if same else [])

    play("exclusive", body)


def test_tally_is_for_the_process_of_its_claim() -> None:
    """Whoever else wrote to it would make the registration go round."""

    async def body(world: World) -> None:
        one = world.claim(A)
        with pytest.raises(NotPermitted):
            world.broker.claims.tally_of(A, identity(HERE))
        with pytest.raises(NotPermitted):
            world.broker.claims.tally_of(B, one.identity)
        assert world.broker.claims.tally_of(A, one.identity) >= 0

    play("rotate", body)


def test_key_is_good_for_its_own_process_alone() -> None:
    """Who knows another's key can neither claim by it, nor release it, nor bring a gate for it."""

    async def body(world: World) -> None:
        world.claim(A)
        before = world.said(A)
        other = world.child()
        with pytest.raises(NotPermitted):
            world.claim(A, child=other)
        with pytest.raises(NotPermitted):
            await world.broker.claims.release(identity(other.pid), "web", A, 0)
        with pytest.raises(NotPermitted):
            world.broker.claims.may_present(A, identity(other.pid))
        assert world.said(A) == before
        assert world.armed() == [A]

    play("exclusive", body)


def test_gate_of_a_dead_holder_is_shut_before_the_next_one_is_told() -> None:
    """A child that it has forked may have it still, and would be woken beside the next one."""

    async def body(world: World) -> None:
        world.claim(A)
        world.claim(B)
        seen: list[list[str]] = []
        world.host.at_each_line = lambda: seen.append(world.armed())
        world.children[0].kill()
        await world.until(lambda: world.armed() == [B], "the next one has it")
        assert seen
        assert not any(A in armed for armed in seen)

    play("exclusive", body)


WAITS = "import time; time.sleep(3600)"


def test_fork_of_a_dead_holder_is_not_woken() -> None:
    """It has the gate of its parent, which nobody else can shut."""

    async def body(world: World) -> None:
        one = world.claim(A)
        assert one.gate is not None
        fd = os.dup(one.gate.fileno())
        with subprocess.Popen([sys.executable, "-c", WAITS], pass_fds=[fd]) as fork:
            try:
                world.children[0].kill()
                await world.until(lambda: world.standing(A) is None, "its death is known")
                deadline = time.monotonic() + 10
                while "tfd" in Path(f"/proc/{fork.pid}/fdinfo/{fd}").read_text():
                    assert time.monotonic() < deadline, "it is armed still"
            finally:
                os.close(fd)
                fork.kill()

    play("exclusive", body)
