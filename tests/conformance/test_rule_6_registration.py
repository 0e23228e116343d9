"""Rule 6: a registration through any duplicate cancels the former one, and can't be split (``registration = latest``).

A registration is a process's, here, and not a descriptor's: with several descriptors or epolls of one socket it does as
it likes. It is one of a shared socket; who has accepted a connection registers that as he likes.
"""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest

from tests.support.circusd import wait_until
from tests.support.puppets import Puppet

from .theatre import KINDS, LISTENING, Theatre, theatre

STILL = 10  # looks, 10 ms apart
NOTICED = 5.0  # s; a registration that nobody announces is noticed within some 10 ms, or a second


@pytest.fixture(scope="module", params=["circus", "supervisor"])
def started(request: pytest.FixtureRequest) -> Iterator[Theatre]:
    """A theatre whose sockets have ``registration = latest``."""
    with theatre(request.param, {"first": 2, "other": 1}, latest=True) as house:
        broker = house.stage.broker()
        yield house
        assert house.stage.broker() == broker


@pytest.fixture
def house(started: Theatre) -> Iterator[Theatre]:
    """A scene in it."""
    with started.scene():
        yield started


def come(house: Theatre, name: str) -> None:
    """Somebody comes to the socket, and is not answered."""
    house.client(name).send(b"anybody?")


def notified(house: Theatre, name: str) -> list[Puppet]:
    """Who of those that registered by the library is told that something waits."""
    return [puppet for puppet in house.holders if not puppet.do("lost", name=name) and puppet.do("notified", name=name)]


def hears(puppet: Puppet, name: str) -> None:
    """Wait until it knows that its registration was cancelled."""
    wait_until(lambda: "cancelled" in puppet.do("lost", name=name), NOTICED, "it hears that it is cancelled")


@pytest.mark.parametrize("kind", KINDS)
def test_registration_cancels_former_one(house: Theatre, kind: str) -> None:
    """Whoever registers, by the descriptor he has, is notified from then on, and whoever did before is no more."""
    name = f"{kind}-gate"
    come(house, name)
    epochs = []
    before: Puppet | None = None
    for puppet in house.holders:
        puppet.do("take", name=name)
        epochs.append(puppet.do("register", name=name))
        assert puppet.do("notified", name=name)
        if before is not None:
            # At once: it was closed before the other was opened. That it is over, it hears a moment later.
            assert not before.do("notified", name=name)
            hears(before, name)
        before = puppet
    assert notified(house, name) == [house.other]
    assert epochs == sorted(set(epochs))
    # A former one that registers anew cancels the present one in its turn.
    house.first.do("unregister", name=name)
    house.first.do("register", name=name)
    assert not house.other.do("notified", name=name)
    hears(house.other, name)
    assert notified(house, name) == [house.first]


@pytest.mark.parametrize("kind", KINDS)
def test_registration_of_unmodified_program_cancels_former_one(house: Theatre, kind: str) -> None:
    """The same of programs that know nothing of it, and register with an epoll of their own: it is noticed."""
    name = f"{kind}-epoll"
    come(house, name)
    for puppet in house.holders:
        puppet.do("take", name=name)
        puppet.do("watch", key=name, events=select.EPOLLIN)
        only(house, name, puppet, select.EPOLLIN)


@pytest.mark.parametrize("kind", KINDS)
def test_registration_can_not_be_split(house: Theatre, kind: str) -> None:
    """One process can't have read events while another has write events: the second registration cancels the first."""
    name = f"{kind}-split"
    come(house, name)
    reader, writer, _ = house.holders
    for puppet in (reader, writer):
        puppet.do("take", name=name)
    reader.do("watch", key=name, events=select.EPOLLIN)
    only(house, name, reader, select.EPOLLIN)
    writer.do("watch", key=name, events=select.EPOLLOUT)
    # A listener is never writable: now nobody is told of who has come.
    only(house, name, writer, 0 if kind in LISTENING else select.EPOLLOUT)
    reader.do("watch", key=name, events=select.EPOLLIN | select.EPOLLOUT)
    only(house, name, reader, select.EPOLLIN | (0 if kind in LISTENING else select.EPOLLOUT))


def only(house: Theatre, name: str, puppet: Puppet, events: int) -> None:
    """Wait until of all that watch the socket with an epoll *puppet* is told of *events*, and the others of nothing."""

    wanted = [events if one is puppet else 0 for one in house.holders]
    seen: list[list[int]] = []

    def settled() -> bool:
        """So, and for a while: who takes over is let go of for a moment before he is armed."""
        seen.append([one.do("events", key=name) for one in house.holders])
        return len(seen) >= STILL and all(told == wanted for told in seen[-STILL:])

    wait_until(settled, NOTICED, f"{puppet.pid} alone is told of {events}")


@pytest.mark.parametrize("kind", ["tcp4", "udp"])
def test_status_shows_who_has_registration(house: Theatre, kind: str) -> None:
    """Which process has it, and by what means, is shown."""
    name = f"{kind}-gate"
    house.sibling.do("register", name=name)
    shown = {holder["pid"]: (holder["registered"], holder["kept_by"]) for holder in house.shown(name)["holders"]}
    assert shown[house.sibling.pid] == (True, "gate")
    assert not any(registered for pid, (registered, _) in shown.items() if pid != house.sibling.pid)
