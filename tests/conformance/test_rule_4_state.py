"""Rule 4: all state of a socket is held in common by its duplicates.

What is not state of the socket is not: the number of a descriptor and its FD_CLOEXEC flag (fcntl(2)).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support.puppets import Puppet

from .theatre import DATAGRAM, KINDS, LISTENING, MET, Theatre, own_address, unconnected

TCP_INFO_BACKLOG = slice(28, 32)  # tcpi_sacked, of a listener (linux/tcp.h)


class Option(NamedTuple):
    """A socket option, and two values that it keeps as they are, or changes in the same way each time."""

    level: int
    number: int
    values: tuple[bytes, bytes]


def integers(level: int, number: int, one: int = 1, other: int = 0) -> Option:
    return Option(level, number, (struct.pack("i", one), struct.pack("i", other)))


TIMES = (struct.pack("ll", 3, 0), struct.pack("ll", 7, 0))
#: Those that every kind has.
COMMON = {
    "SO_RCVBUF": integers(socket.SOL_SOCKET, socket.SO_RCVBUF, 30_000, 40_000),
    "SO_SNDBUF": integers(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000, 40_000),
    "SO_RCVLOWAT": integers(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2, 3),
    "SO_RCVTIMEO": Option(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMES),
    "SO_SNDTIMEO": Option(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMES),
    "SO_KEEPALIVE": integers(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "SO_REUSEADDR": integers(socket.SOL_SOCKET, socket.SO_REUSEADDR),
    "SO_OOBINLINE": integers(socket.SOL_SOCKET, socket.SO_OOBINLINE),
    "SO_LINGER": Option(socket.SOL_SOCKET, socket.SO_LINGER, (struct.pack("ii", 1, 5), struct.pack("ii", 0, 0))),
    "SO_PRIORITY": integers(socket.SOL_SOCKET, socket.SO_PRIORITY, 3, 4),
    "SO_TIMESTAMP": integers(socket.SOL_SOCKET, 29),  # asm-generic/socket.h
}
UNIX = {"SO_PASSCRED": integers(socket.SOL_SOCKET, socket.SO_PASSCRED)}
TCP = {
    "TCP_NODELAY": integers(socket.IPPROTO_TCP, socket.TCP_NODELAY),
    "TCP_CORK": integers(socket.IPPROTO_TCP, socket.TCP_CORK),
    "TCP_DEFER_ACCEPT": integers(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 3, 0),
    "TCP_KEEPIDLE": integers(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30, 40),
    "TCP_KEEPINTVL": integers(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3, 4),
    "TCP_KEEPCNT": integers(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3, 4),
    "TCP_SYNCNT": integers(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 3, 4),
    "TCP_LINGER2": integers(socket.IPPROTO_TCP, socket.TCP_LINGER2, 30, 40),
    "TCP_WINDOW_CLAMP": integers(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, 30_000, 40_000),
    "TCP_USER_TIMEOUT": integers(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000, 4000),
}
IPV4 = {
    "IP_TOS": integers(socket.IPPROTO_IP, socket.IP_TOS, 0x10, 0x08),
    "IP_TTL": integers(socket.IPPROTO_IP, socket.IP_TTL, 30, 40),
    "IP_RECVTOS": integers(socket.IPPROTO_IP, socket.IP_RECVTOS),
}
IPV6 = {
    "IPV6_TCLASS": integers(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x10, 0x08),
    "IPV6_UNICAST_HOPS": integers(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 30, 40),
    "IPV6_RECVTCLASS": integers(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS),
}
OPTIONS: dict[str, dict[str, Option]] = {
    "tcp4": {**COMMON, **TCP, **IPV4},
    "tcp6": {**COMMON, **TCP, **IPV6},
    "udp": {**COMMON, **IPV4, "SO_BROADCAST": integers(socket.SOL_SOCKET, socket.SO_BROADCAST)},
    "unix": {**COMMON, **UNIX},
    "unixgram": {**COMMON, **UNIX},
    "unixseqpacket": {**COMMON, **UNIX},
}
#: Flags of the open file description (fcntl(2), F_SETFL), which socket options are not.
FLAGS = {"O_NONBLOCK": os.O_NONBLOCK, "O_ASYNC": os.O_ASYNC}


@pytest.fixture(params=["listening", "connected"])
def processes(request: pytest.FixtureRequest, one_house: Theatre) -> Iterator[tuple[Puppet, ...]]:
    """Processes that have one socket as `MET`, listening (of a datagram kind: bound), or connected to a client."""
    kind = request.node.callspec.params["kind"]
    if request.param == "connected":
        if KINDS[kind].listens:
            _, met = one_house.meet(kind)
        else:
            _, met = one_house.meet_by_datagram(f"{kind}-options")
        yield met
        return
    for puppet in one_house.holders:
        puppet.do("take", name=f"{kind}-options", key=MET)
    yield (*one_house.holders, one_house.child(one_house.first))


@pytest.mark.parametrize(("kind", "option"), [(kind, option) for kind in KINDS for option in OPTIONS[kind]])
def test_option_is_shared(processes: tuple[Puppet, ...], kind: str, option: str) -> None:
    """A setsockopt through one descriptor is visible to getsockopt through any or all descriptors."""
    level, number, values = OPTIONS[kind][option]
    size = len(values[0])

    def read() -> set[str]:
        return {puppet.do("get", key=MET, level=level, option=number, size=size) for puppet in processes}

    for writer in processes:
        (before,) = read()
        for value in values:  # one of the two is not what it has now
            writer.do("set", key=MET, level=level, option=number, value=value.hex())
            (after,) = read()
            if after != before:
                break
        assert after != before


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("kind", KINDS)
def test_status_flag_is_shared(processes: tuple[Puppet, ...], kind: str, flag: str) -> None:
    """The blocking mode (FIONBIO of Winsock) is of the socket: set through one descriptor, all have it."""
    bit = FLAGS[flag]
    for writer in processes:
        (before,) = {puppet.do("control", key=MET, command=fcntl.F_GETFL) for puppet in processes}
        for flags in (before ^ bit, before):
            writer.do("control", key=MET, command=fcntl.F_SETFL, argument=flags)
            assert {puppet.do("control", key=MET, command=fcntl.F_GETFL) for puppet in processes} == {flags}


@pytest.mark.parametrize("kind", KINDS)
def test_owner_is_shared(processes: tuple[Puppet, ...], kind: str) -> None:
    """Who is sent the socket's signals (F_SETOWN) is set through one descriptor for all: the last one wins."""
    for writer in processes:
        writer.do("control", key=MET, command=fcntl.F_SETOWN, argument=writer.pid)
        assert {puppet.do("control", key=MET, command=fcntl.F_GETOWN) for puppet in processes} == {writer.pid}
        writer.do("control", key=MET, command=fcntl.F_SETOWN, argument=0)


@pytest.mark.parametrize("kind", KINDS)
def test_descriptor_flag_is_not_shared(processes: tuple[Puppet, ...], kind: str) -> None:
    """What is the descriptor's own stays its own: close-on-exec is changed in one process and no other."""
    writer, *others = processes
    before = [puppet.do("control", key=MET, command=fcntl.F_GETFD) for puppet in others]
    own = writer.do("control", key=MET, command=fcntl.F_GETFD)
    writer.do("control", key=MET, command=fcntl.F_SETFD, argument=own ^ fcntl.FD_CLOEXEC)
    assert [puppet.do("control", key=MET, command=fcntl.F_GETFD) for puppet in others] == before


@pytest.mark.parametrize("kind", LISTENING)
def test_backlog_is_shared(one_house: Theatre, kind: str) -> None:
    """A listen through one descriptor changes how many clients may wait, for all."""
    name = f"{kind}-options"
    for puppet in one_house.holders:
        puppet.do("take", name=name)
    for backlog, puppet in enumerate(one_house.holders, 1):
        puppet.do("listen", key=name, backlog=backlog)
        if KINDS[kind].family == socket.AF_UNIX:
            assert count_clients(one_house, name) == backlog + 1  # that many and one (unix(7))
            for _ in range(backlog + 1):
                one_house.first.do("accept", key=name, connection="one")
                one_house.first.do("close", key="one")
        for reader in one_house.holders if KINDS[kind].family != socket.AF_UNIX else ():
            info = reader.do("get", key=name, level=socket.IPPROTO_TCP, option=socket.TCP_INFO, size=64)
            assert int.from_bytes(bytes.fromhex(info)[TCP_INFO_BACKLOG], "little") == backlog


def count_clients(house: Theatre, name: str) -> int:
    """How many connect until the queue is full."""
    place = house.places[name]
    count = 0
    while True:
        with socket.socket(place.kind.family, place.kind.type) as client:
            client.setblocking(False)
            try:
                client.connect(place.address)
            except BlockingIOError:
                return count
        count += 1


@pytest.mark.parametrize("kind", LISTENING)
def test_shutdown_of_listener_is_shared(one_house: Theatre, kind: str) -> None:
    """One process's shutdown ends the listening for all, as the socket has one state; of TCP any may listen anew."""
    name = f"{kind}-shut"
    for puppet in one_house.holders:
        puppet.do("take", name=name)
    assert not any(puppet.do("hung_up", key=name) for puppet in one_house.holders)
    one_house.first.do("shutdown", key=name, how=socket.SHUT_RDWR)
    assert all(puppet.do("hung_up", key=name) for puppet in one_house.holders)
    with pytest.raises(ConnectionRefusedError):
        one_house.client(name)
    one_house.sibling.do("listen", key=name, backlog=10)
    if KINDS[kind].family == socket.AF_UNIX:  # for good
        with pytest.raises(ConnectionRefusedError):
            one_house.client(name)
        return
    client = one_house.client(name)
    one_house.other.do("accept", key=name, connection="one")
    one_house.other.do("send", key="one", text="hello")
    assert client.recv(100) == b"hello"


@pytest.mark.parametrize("kind", LISTENING)
def test_shutdown_of_connection_is_shared(one_house: Theatre, kind: str) -> None:
    """A shutdown is of the connection, not of a descriptor: nobody can send any more, and all can still receive."""
    client, processes = one_house.meet(kind)
    processes[0].do("shutdown", key=MET, how=socket.SHUT_WR)
    for puppet in processes:
        assert "BrokenPipeError" in puppet.fails("send", key=MET, text="x")
    assert client.recv(100) == b""
    for puppet in processes:
        client.send(b"still here")
        assert puppet.do("receive", key=MET)[0] == "still here"


@pytest.mark.parametrize("kind", DATAGRAM)
def test_shutdown_of_datagram_socket_is_shared(one_house: Theatre, kind: str) -> None:
    """The same without a connection: a socket that has a peer sends it nothing any more, by any descriptor."""
    _, processes = one_house.meet_by_datagram(f"{kind}-shut")
    processes[0].do("shutdown", key=MET, how=socket.SHUT_WR)
    for puppet in processes:
        assert "BrokenPipeError" in puppet.fails("send", key=MET, text="x")


@pytest.mark.parametrize("kind", DATAGRAM)
def test_peer_of_datagram_socket_is_shared(one_house: Theatre, kind: str) -> None:
    """A connect through one descriptor gives all of them the peer: they send to it, and receive from nobody else."""
    name = f"{kind}-connected"
    place = one_house.places[name]
    for puppet in one_house.holders:
        puppet.do("take", name=name)
    for writer in one_house.holders:
        with unconnected(place) as peer, unconnected(place) as stranger:
            address = own_address(peer)
            writer.do("connect", key=name, to=address)
            for puppet in one_house.holders:
                found = puppet.do("peer", key=name)
                assert found == (list(address) if isinstance(address, tuple) else address)
                puppet.do("send", key=name, text=str(puppet.pid))
                assert peer.recv(100) == b"%d" % puppet.pid
            refused = place.kind.family == socket.AF_UNIX
            if refused:
                with pytest.raises(PermissionError):
                    stranger.sendto(b"x", place.address)
            else:
                stranger.sendto(b"x", place.address)
            assert not any(puppet.do("waiting", key=name) for puppet in one_house.holders)
            peer.sendto(b"y", place.address)
            assert one_house.first.do("receive", key=name)[0] == "y"
