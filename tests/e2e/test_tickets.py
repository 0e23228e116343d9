"""A ticket is good once, soon, for one process; anything else that is shown at the door gets no descriptor."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from tests.e2e.rehearsal import measure
from tests.support import door
from tests.support.circusd import Circusd, descriptors, resident, wait_until
from tests.support.puppets import Puppet, puppets

Stage = tuple[Circusd, list[Puppet]]
NOBODY = 65534
SOAK = (pytest.mark.soak, pytest.mark.timeout(600))


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Two puppets of one program."""
    with puppets(2) as started:
        yield started


def test_socket_of_manager_comes_for_good_ticket(stage: Stage) -> None:
    """The descriptor is the very socket that circusd made (same inode), or the tests below would prove nothing."""
    circusd, (puppet, _) = stage
    [shared] = circusd.status()["sockets"]
    reply = puppet.reply("redeem", ticket=puppet.do("ticket"))
    assert reply.text.startswith("+"), reply
    assert reply.inodes == [shared["inode"]]


def test_no_descriptor_comes_for_replayed_ticket(stage: Stage) -> None:
    """Once acknowledged, a ticket is spent, also when the second showing follows at once."""
    replies = [door.Reply(*reply) for reply in stage[1][0].do("replay", times=100)]
    assert not any(reply.granted for reply in replies)
    assert all(reply.text.startswith("-") for reply in replies), replies


def test_no_descriptor_comes_for_expired_ticket(stage: Stage) -> None:
    """After 5 s it is worth nothing, to its own process either."""
    puppet = stage[1][0]
    ticket = puppet.do("ticket")
    measure(5.3)  # the law is about this span; nothing happens in it that one could wait for
    reply = puppet.reply("redeem", ticket=ticket)
    assert not reply.granted
    assert reply.text.startswith("-"), reply


def test_no_descriptor_comes_for_ticket_of_other_process(stage: Stage) -> None:
    """Neither a sibling, nor a child, nor an outsider may use it; and none of them spoils it for its owner."""
    circusd, (puppet, sibling) = stage
    ticket = puppet.do("ticket")
    attempts = {
        "sibling": sibling.reply("redeem", ticket=ticket),
        "child": puppet.reply("redeem_as", ticket=ticket),
        "outsider": door.redeem(str(circusd.runtime), [bytes.fromhex(ticket)]),
    }
    assert not [who for who, reply in attempts.items() if reply.granted], attempts
    assert puppet.reply("redeem", ticket=ticket).granted


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_no_descriptor_comes_for_ticket_shown_by_other_uid(stage: Stage) -> None:
    """Another user gets nothing, be it a child of the owner or a stranger."""
    circusd, (puppet, _) = stage
    ticket = puppet.do("ticket")
    attempts = {
        "child": puppet.reply("redeem_as", ticket=ticket, uid=NOBODY),
        "stranger": door.redeem_as(str(circusd.runtime), [bytes.fromhex(ticket)], NOBODY),
    }
    assert not [who for who, reply in attempts.items() if reply.granted], attempts
    assert all("Error: " not in reply.text or "exit" in reply.text for reply in attempts.values()), attempts
    assert puppet.reply("redeem", ticket=ticket).granted


def test_no_descriptor_comes_for_ticket_with_one_bit_changed(stage: Stage) -> None:
    """Each of its 128 bits counts; so do its length and its number."""
    puppet = stage[1][0]
    ticket = puppet.do("ticket")
    number = int(ticket, 16)
    forged = [f"{number ^ (1 << bit):032x}" for bit in range(128)]
    forged += [ticket[:-2], ticket + "00", "", "00" * 16, "ff" * 16, ticket * 17]
    replies = [door.Reply(*reply) for reply in puppet.do("redeem_all", tickets=forged)]
    assert not any(reply.granted for reply in replies)
    assert puppet.reply("redeem", ticket=puppet.do("ticket")).granted


def test_no_ticket_is_issued_for_what_program_may_not_have(stage: Stage) -> None:
    """An unknown socket is named, with the nearest there is; an outsider is refused, and told why."""
    circusd, (puppet, _) = stage
    unknown = puppet.do("ask", op="ticket", socket="wbe")
    assert not unknown["ok"]
    assert "web" in unknown["message"], unknown
    outsider = door.Dialogue(str(circusd.runtime))
    try:
        refused = outsider.ask("ticket", socket="web")
    finally:
        outsider.close()
    assert not refused["ok"]
    assert refused["error"] == "NotPermitted"
    assert str(os.getpid()) in refused["message"], refused


def test_no_socket_is_handed_out_without_a_ticket(stage: Stage) -> None:
    """Not even to a process that may have it: the door gives by name only what is good for nobody else."""
    circusd, (puppet, _) = stage
    puppet.do("ticket")  # by which the broker knows it
    refused = {
        "one that may have it": puppet.reply("visit", packet="Sweb"),
        "a child of it": puppet.reply("visit_as_child", packet="Sweb"),
        "an outsider": door.visit(str(circusd.runtime), "Sweb"),
        "another's tally": puppet.reply("visit", packet="Stally:" + "0" * 32),
        "no name": puppet.reply("visit", packet="S"),
    }
    assert not [who for who, reply in refused.items() if reply.granted], refused
    assert set(errors(refused)) == {"TicketRefused", "NotPermitted"}
    assert errors(refused)[:3] == ["TicketRefused"] * 3


def errors(refused: dict[str, door.Reply]) -> list[str]:
    return [json.loads(reply.text[1:])["error"] for reply in refused.values()]


def test_sibling_is_given_what_was_duplicated_for_it(stage: Stage) -> None:
    """A ticket for another process of the program is that one's alone."""
    _, (puppet, sibling) = stage
    answer = puppet.do("ask", op="ticket", socket="web", pid=sibling.pid)
    assert answer["ok"], answer
    assert not puppet.reply("redeem", ticket=answer["ticket"]).granted
    assert sibling.reply("redeem", ticket=answer["ticket"]).granted


@pytest.mark.parametrize("moment", door.MOMENTS)
def test_broker_keeps_nothing_of_client_that_leaves(stage: Stage, moment: str) -> None:
    """Gone between any two words of a hand-out, a client leaves no descriptor behind, and others are served."""
    circusd, (puppet, _) = stage
    broker = circusd.broker()
    before = descriptors(broker)
    for _ in range(3):
        assert puppet.do("leave", moment=moment) == 0
    assert puppet.reply("redeem", ticket=puppet.do("ticket")).granted
    # ZeroMQ lets go of a connection in its own thread, and the door waits 2 s for a silent one.
    wait_until(lambda: descriptors(broker) <= before, 5, f"the broker has {before} descriptors again", 0.05)
    assert circusd.broker() == broker


def test_broker_answers_others_while_doors_are_held_open(stage: Stage) -> None:
    """Silent connections are closed after 2 s, and keep nobody out until then."""
    circusd, (puppet, _) = stage
    began = time.monotonic()
    silent = [door.knock(str(circusd.runtime)) for _ in range(30)]
    try:
        assert puppet.reply("redeem", ticket=puppet.do("ticket")).granted
        assert time.monotonic() - began < 1.0
        for sock in silent:
            assert not door.read(sock).granted  # the end, within its time-out
        assert time.monotonic() - began < 4.0
    finally:
        for sock in silent:
            sock.close()


@pytest.mark.parametrize("garbage", [b"", b"X", b"R", b"R" + b"x" * 15, b"A", b"H" * 9000, bytes(range(256))], ids=repr)
def test_broker_survives_garbage_at_the_door(stage: Stage, garbage: bytes) -> None:
    """What is no request is answered with a refusal or the end, and costs nothing else."""
    circusd, (puppet, _) = stage
    broker = circusd.broker()
    with door.knock(str(circusd.runtime)) as sock:
        sock.send(garbage)
        assert not door.read(sock).granted
    assert puppet.reply("redeem", ticket=puppet.do("ticket")).granted
    assert circusd.broker() == broker


@pytest.mark.parametrize("times", [1000, pytest.param(10_000, marks=SOAK, id="soak")])
def test_broker_does_not_grow_over_ticket_round_trips(stage: Stage, times: int) -> None:
    """Descriptors and memory are flat: 500 round trips warm it up, the rest cost under 1 MiB."""
    circusd, (puppet, _) = stage
    broker = circusd.broker()
    assert puppet.do("round_trips", times=500) == 500
    count, memory = descriptors(broker), resident(broker)
    assert puppet.do("round_trips", times=times) == times
    wait_until(lambda: descriptors(broker) <= count, 5, f"the broker has {count} descriptors again", 0.05)
    assert circusd.broker() == broker
    # What is free is given back every few seconds.
    wait_until(lambda: resident(broker) - memory < 1024, 10, f"the broker has some {memory} KiB again", 0.5)
