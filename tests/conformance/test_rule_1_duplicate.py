"""Rule 1: a structure made for one process, carried by any means, gives that process the same socket.

A connection is not duplicated so: `duplicate` takes the name of a shared socket, and the broker has only those. An
established connection moves by rule 7, and is inherited or passed on as any descriptor is (rules 3 to 5).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.e2e.rehearsal import measure
from tests.support import door

from .theatre import KINDS, STRANGERS_OWN, Theatre, inodes

LIFETIME = 5.0  # s that a ticket is good for
Old = dict[str, tuple[float, dict[str, str]]]


@pytest.fixture(scope="module")
def old(circus_house: Theatre, supervisor_house: Theatre) -> Old:
    """A ticket of each kind for the sibling, and when it was issued, under each manager."""
    tickets = {}
    for house in (circus_house, supervisor_house):
        pid = house.sibling.pid
        tickets[house.manager] = (
            time.monotonic(),
            {kind: house.first.do("duplicate", name=kind, pid=pid) for kind in KINDS},
        )
    return tickets


@pytest.fixture(autouse=True)
def _issued_first(old: Old) -> None:
    """The tickets that are to expire get older while the other tests of this module run."""


@pytest.mark.parametrize("kind", KINDS)
def test_target_gets_same_underlying_socket(house: Theatre, kind: str) -> None:
    """The target process opens it and has an additional descriptor for the same underlying socket."""
    ticket = house.first.do("duplicate", name=kind, pid=house.sibling.pid)
    inode = house.sibling.do("redeem", ticket=ticket, key="mine")
    assert inode == house.first.do("take", name=kind) == inodes(house.status())[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_target_may_be_of_another_program(house: Theatre, kind: str) -> None:
    """Sockets are shared between processes, whatever program they run, if both are entitled (Winsock asks nobody)."""
    ticket = house.first.do("duplicate", name=kind, pid=house.other.pid)
    assert house.other.do("redeem", ticket=ticket, key="mine") == inodes(house.status())[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_target_may_be_forked_worker(house: Theatre, kind: str) -> None:
    """The target is any process of which one knows the id, such as a worker that was forked before."""
    worker, sibling = house.child(house.first), house.child(house.first)
    ticket = house.first.do("duplicate", name=kind, pid=worker.pid)
    assert "TicketRefused" in sibling.fails("redeem", ticket=ticket, key="mine")
    assert worker.do("redeem", ticket=ticket, key="mine") == inodes(house.status())[kind]


@pytest.mark.parametrize("means", ["file", "fifo"])
def test_any_means_carries_structure(house: Theatre, tmp_path: Path, means: str) -> None:
    """Any interprocess communication passes the structure to the target (a socket does in all other tests)."""
    path = str(tmp_path / means)
    if means == "fifo":
        # Opened for both, so that neither end waits for the other: an actor does one thing at a time.
        os.mkfifo(path)
    held = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        house.first.do("write_ticket", path=path, name="tcp4", pid=house.sibling.pid)
        if means == "fifo":
            data = os.read(held, 100)
            house.sibling.do("redeem", ticket=data.hex(), key="mine")
        else:
            house.sibling.do("redeem_from", path=path, key="mine")
    finally:
        os.close(held)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_else_can_use_structure(house: Theatre, kind: str) -> None:
    """The structure is for the one process it was made for: who else shows it gets nothing, and spoils nothing."""
    ticket = house.first.do("duplicate", name=kind, pid=house.sibling.pid)
    others = [house.first, house.other, house.stranger, house.child(house.sibling)]
    for puppet in others:
        assert "TicketRefused" in puppet.fails("redeem", ticket=ticket, key="stolen")
    assert not door.redeem(str(house.stage.runtime), [bytes.fromhex(ticket)]).granted
    assert house.sibling.do("redeem", ticket=ticket, key="mine") == inodes(house.status())[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_structure_is_used_once(house: Theatre, kind: str) -> None:
    """The special structure can be used only once by the target process; each duplicate takes another."""
    ticket = house.first.do("duplicate", name=kind, pid=house.sibling.pid)
    house.sibling.do("redeem", ticket=ticket, key="mine")
    house.sibling.do("close", key="mine")
    assert "TicketRefused: can't redeem ticket: it was used before" in house.sibling.fails(
        "redeem", ticket=ticket, key="again"
    )
    another = house.first.do("duplicate", name=kind, pid=house.sibling.pid)
    assert house.sibling.do("redeem", ticket=another, key="again") == inodes(house.status())[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_process_has_one_descriptor_however_often_it_redeems(house: Theatre, kind: str) -> None:
    """Here a process has one duplicate of a socket: a second ticket gives the descriptor that it has."""
    house.sibling.do("take", name=kind)
    before = house.sibling.do("descriptors")
    house.sibling.do("redeem", ticket=house.first.do("duplicate", name=kind, pid=house.sibling.pid), key="again")
    assert house.sibling.do("fileno", key="again") == house.sibling.do("fileno", key=kind)
    assert house.sibling.do("descriptors") == before


def test_no_structure_is_made_for_who_may_not_have_socket(house: Theatre) -> None:
    """Winsock has no access control on duplication; here both processes must be of programs that name the socket."""
    assert "NotPermitted" in house.first.fails("duplicate", name="tcp4", pid=house.stranger.pid)
    assert "NotPermitted" in house.stranger.fails("duplicate", name="tcp4", pid=house.first.pid)
    assert "NotPermitted" in house.first.fails("duplicate", name=STRANGERS_OWN, pid=house.stranger.pid)
    assert "NotPermitted" in house.first.fails("duplicate", name="tcp4", pid=os.getpid())
    assert "UnknownSocket" in house.first.fails("duplicate", name="tcp5", pid=house.sibling.pid)


@pytest.mark.parametrize("kind", KINDS)  # the last of this module: by then they are old
def test_structure_expires(house: Theatre, old: Old, kind: str) -> None:
    """Winsock's structure is good until the source closes its socket; here it is for 5 s, so that none lies about."""
    issued, tickets = old[house.manager]
    measure(max(0.0, issued + LIFETIME + 0.1 - time.monotonic()))
    assert "TicketRefused" in house.sibling.fails("redeem", ticket=tickets[kind], key="late")
