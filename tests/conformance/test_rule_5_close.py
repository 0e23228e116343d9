"""Rule 5: a close is of one descriptor; the socket lives until the last is closed, whoever has it, and then it is gone.

Who still has one, Winsock can't say; here the status does, of processes that never asked the broker too.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from tests.support.circusd import wait_until
from tests.support.puppets import Puppet

from .theatre import KINDS, LISTENING, MET, Mailbox, Place, Theatre, theatre


def serve(house: Theatre, name: str, puppet: Puppet) -> None:
    """A new client of *name* is answered by *puppet*, which has it."""
    answer(house.client(name), puppet, name)


def answer(client: socket.socket, puppet: Puppet, name: str) -> None:
    """*client*, whose turn it is, is answered by *puppet*."""
    client.send(b"anybody?")
    address = None
    key = name
    if client.type != socket.SOCK_DGRAM:
        puppet.do("accept", key=name, connection="one")
        key = "one"
    text, sender = puppet.do("receive", key=key)
    assert text == "anybody?"
    if client.type == socket.SOCK_DGRAM:
        address = sender
    puppet.do("send", key=key, text=str(puppet.pid), to=address)
    assert client.recv(100) == b"%d" % puppet.pid
    if key != name:
        puppet.do("close", key=key)


@pytest.mark.parametrize("kind", KINDS)
def test_close_is_of_one_descriptor(house: Theatre, kind: str) -> None:
    """A process closes its duplicate, and that descriptor is gone; the others' are as good as before."""
    for puppet in house.holders:
        puppet.do("take", name=kind)
    for closing, remaining in zip(house.holders, house.holders[1:], strict=False):
        closing.do("close", key=kind)
        serve(house, kind, remaining)
    house.other.do("close", key=kind)
    # Only the source has it now: who comes meanwhile waits for whoever takes it next.
    client = house.client(kind)
    house.sibling.do("take", name=kind)
    answer(client, house.sibling, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_death_is_close(one_house: Theatre, kind: str) -> None:
    """A process that is killed has closed its duplicates, and nothing more."""
    one_house.first.do("take", name=kind)
    worker = one_house.child(one_house.first)
    serve(one_house, kind, worker)
    assert one_house.stage.kill(worker.pid)
    serve(one_house, kind, one_house.first)


@pytest.mark.parametrize("kind", LISTENING)
def test_connection_lives_to_last_duplicate(one_house: Theatre, kind: str) -> None:
    """A connection remains open until its last descriptor is closed; only then does the peer see the end."""
    client, processes = one_house.meet(kind)
    for puppet in processes:
        puppet.do("send", key=MET, text="still here")
        assert client.recv(100) == b"still here"
        assert not select.select([client], [], [], 0)[0]
        puppet.do("close", key=MET)
    assert client.recv(100) == b""


@pytest.mark.parametrize("kind", KINDS)
def test_everybody_who_holds_socket_is_shown(house: Theatre, kind: str, mailbox: Mailbox) -> None:
    """Who took it, a worker that inherited it, who was passed it: of a program without a right to it, or of none."""
    house.first.do("take", name=kind)
    assert shown(house, kind) == ({house.first.pid}, {})
    worker = house.child(house.first)
    house.first.do("post", key=kind, path=mailbox.path)
    house.first.do("post", key=kind, path=house.stranger.do("open_mailbox"))
    house.stranger.do("collect")
    with mailbox.collect():
        # Nobody here asked the broker but the first.
        holders, others = shown(house, kind)
        assert holders == {house.first.pid}
        assert set(others) == {os.getpid(), worker.pid, house.stranger.pid}
        assert others[os.getpid()] is None
        assert str(others[worker.pid]).startswith("first")
        assert str(others[house.stranger.pid]).startswith("stranger")
    house.first.do("close", key=kind)
    holders, others = shown(house, kind)
    assert holders == set()
    assert set(others) == {worker.pid, house.stranger.pid}
    house.first.do("reset")  # which kills the worker
    house.stranger.do("reset")
    assert shown(house, kind) == (set(), {})


def shown(house: Theatre, name: str) -> tuple[set[int], dict[int, str | None]]:
    """What the status has of a socket: the managed processes that hold it; the others by pid, with their process."""
    entry = house.shown(name)
    holders = {holder["pid"] for holder in entry["holders"] if holder["holds"]}
    for one in entry["others"]:
        assert "python" in one["command"], one
    return holders, {one["pid"]: one["process"] for one in entry["others"]}


def test_everybody_who_holds_socket_is_printed(house: Theatre, mailbox: Mailbox) -> None:
    """`sockshare status` has a line for those that never asked."""
    house.first.do("take", name="udp")
    house.first.do("post", key="udp", path=mailbox.path)
    with mailbox.collect():
        printed = house.stage.sockshare("status").stdout
    lines = [line.split()[:3] for line in printed.splitlines()]
    assert ["udp", str(os.getpid()), "-"] in lines, printed


class Orphans:
    """The sockets of a manager that has ended, the last duplicates of which are ours; and a client of each."""

    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}
        self.clients: dict[str, socket.socket] = {}
        self.house: Theatre | None = None

    def adopt(self, house: Theatre, mailbox: Mailbox) -> None:
        """Have a duplicate of each kind, and a client waiting; then the manager ends, and all that it runs."""
        self.house = house
        for kind in KINDS:
            house.first.do("take", name=kind)
            house.first.do("post", key=kind, path=mailbox.path)
            self.sockets[kind] = mailbox.collect()
            self.clients[kind] = house.places[kind].client()
            self.clients[kind].send(b"anybody?")
        assert house.stage.stop() == []

    def close(self) -> None:
        """Let go of all."""
        for sock in (*self.sockets.values(), *self.clients.values()):
            sock.close()


@pytest.fixture(scope="module", params=["circus", "supervisor"])
def orphans(request: pytest.FixtureRequest) -> Iterator[Orphans]:
    """The orphans of each manager."""
    mailbox, orphans = Mailbox(), Orphans()
    try:
        with theatre(request.param, {"first": 1}) as house:
            orphans.adopt(house, mailbox)
            yield orphans
    finally:
        orphans.close()
        mailbox.close()


@pytest.mark.parametrize("kind", KINDS)
def test_socket_lives_to_last_duplicate_and_then_address_is_free(orphans: Orphans, kind: str) -> None:
    """Even its source may close it: it goes on serving whoever has it, and is gone with the last, its port free."""
    sock, client = orphans.sockets[kind], orphans.clients[kind]
    assert orphans.house is not None
    place = orphans.house.places[kind]
    internet = place.kind.family != socket.AF_UNIX
    with reached(sock) as connection:  # who came before the end
        data, address = connection.recvfrom(100)
        assert data == b"anybody?"
        connection.sendto(b"yes", address) if address else connection.send(b"yes")
    assert client.recv(100) == b"yes"
    if internet:  # of a path only the name is gone, which the managers remove
        assert not place.is_free()
        with place.client() as later:
            later.send(b"anybody?")
            with reached(sock) as connection:
                assert connection.recv(100) == b"anybody?"
        client.close()
    sock.close()
    assert place.is_free()
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        ask(place)


def ask(place: Place) -> None:
    """Be a client that expects an answer."""
    with place.client() as client:
        client.send(b"anybody?")
        client.recv(100)  # of UDP only the second call is told (udp(7))


def reached(sock: socket.socket) -> socket.socket:
    """What a client that has come is served by: the next connection of *sock*, or a duplicate of *sock* itself."""
    wait_until(lambda: select.select([sock], [], [], 0)[0], 10, "a client has come")
    if sock.type == socket.SOCK_DGRAM:
        return sock.dup()
    connection, _ = sock.accept()
    connection.settimeout(10)
    return connection
