"""A lane carries connections and states whole and in order, never finds no room for a decision, and leaks nothing."""

from __future__ import annotations

import array
import os
import resource
import socket
import struct
from collections.abc import Iterator

import pytest

from sockshare.core.handover import Decline
from sockshare.kernel import lanes
from sockshare.kernel.lanes import Arrival, BadPacket, Cargo, Lane, drop_all, pair


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def ends() -> Iterator[tuple[Lane, Lane]]:
    """Both ends; what a test leaves open fails it."""
    before = descriptors()
    one, other = pair()
    giver, receiver = Lane(one.detach()), Lane(other.detach())
    yield giver, receiver
    giver.close()
    receiver.close()
    assert descriptors() == before


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Lane]]:
    """A peer that says what it likes, and an end of ours."""
    before = descriptors()
    one, other = pair()
    lane = Lane(other.detach())
    with one:
        yield one, lane
        lane.close()
    assert descriptors() == before


def cargo(id: int, sock: socket.socket, state: bytes = b"") -> Cargo:
    return Cargo(id, sock.fileno(), int(sock.family), int(sock.type), sock.proto, state)


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


@pytest.mark.parametrize("size", [0, 1, lanes.INLINE, lanes.INLINE + 1, 3_000_000])
def test_connection_arrives_with_its_state(ends: tuple[Lane, Lane], size: int) -> None:
    """It is the same socket, of the same kind, close-on-exec; the state is what it was, however long."""
    giver, receiver = ends
    state = os.urandom(size)
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        giver.send_offer([cargo(7, sock, state)])
        packet = receiver.receive()
        assert packet is not None
        assert (packet.kind, packet.ids) == (lanes.OFFER, [7])
        (arrival,) = packet.arrivals
        assert inode(arrival.fd) == inode(sock.fileno())
        assert not os.get_inheritable(arrival.fd)
        assert (arrival.family, arrival.type, arrival.protocol) == (sock.family, sock.type, sock.proto)
        assert arrival.state() == state
        arrival.drop()
    assert receiver.receive() is None


def test_batch_arrives_in_order(ends: tuple[Lane, Lane]) -> None:
    """Descriptors and states of many, long ones among them, don't get mixed up."""
    giver, receiver = ends
    socks = [socket.socket() for _ in range(100)]
    states = [bytes([number]) * (70_000 if number % 10 == 3 else number) for number in range(100)]
    giver.send_offer([cargo(number, sock, states[number]) for number, sock in enumerate(socks)])
    packet = receiver.receive()
    assert packet is not None
    for sock, state, arrival in zip(socks, states, packet.arrivals, strict=True):
        assert inode(arrival.fd) == inode(sock.fileno())
        assert arrival.state() == state
        sock.close()
    drop_all(packet.arrivals)


def test_decisions_and_reports_arrive(ends: tuple[Lane, Lane]) -> None:
    """What is said of which connections, why, and what it has to report."""
    giver, receiver = ends
    giver.send(lanes.COMMIT, [1, 2**40])
    giver.send(lanes.WITHDRAW, range(3, 6))
    receiver.send(lanes.TAKE, [1], 0, 5, 6, 7)
    receiver.send(lanes.DECLINE, [2], Decline.CLOSED.value)
    receiver.send(lanes.REPORT, (), 0, 1, 2, 0)
    said = [receiver.receive(), receiver.receive(), giver.receive(), giver.receive(), giver.receive()]
    assert [(one.kind, list(one.ids), one.reason, one.received, one.load, one.window) for one in said if one] == [
        (lanes.COMMIT, [1, 2**40], 0, 0, 0, 0),
        (lanes.WITHDRAW, [3, 4, 5], 0, 0, 0, 0),
        (lanes.TAKE, [1], 0, 5, 6, 7),
        (lanes.DECLINE, [2], Decline.CLOSED.value, 0, 0, 0),
        (lanes.REPORT, [], 0, 1, 2, 0),
    ]


def test_decision_finds_room_however_many_offers_are_unread(ends: tuple[Lane, Lane]) -> None:
    """A receiver that is stopped reads nothing: as long as offers were sent only where there was room, every one of
    them can be committed or withdrawn."""
    giver, receiver = ends
    with socket.socket() as sock:
        sent = 0
        while giver.has_room(2000, sent):
            giver.send_offer([cargo(sent, sock, b"s" * 2000)])
            sent += 1
        assert sent > 20
        for number in range(sent):
            giver.send(lanes.COMMIT, [number])
            giver.send(lanes.WITHDRAW, [number])
        count = 0
        while (packet := receiver.receive()) is not None:
            drop_all(packet.arrivals)
            count += 1
        assert count == 3 * sent


def test_offer_without_room_blocks_and_nothing_is_sent(ends: tuple[Lane, Lane]) -> None:
    """It raises at once, and the lane is as it was."""
    giver, receiver = ends
    with socket.socket() as sock:
        while giver.unread() < 100_000:
            giver.send_offer([cargo(1, sock, b"s" * 60_000)])
        assert not giver.has_room(1_000_000, 0)

        def fill() -> None:
            while True:
                giver.send_offer([cargo(1, sock, b"s" * 60_000)])

        with pytest.raises(BlockingIOError):
            fill()
    assert not giver.roomy
    while (packet := receiver.receive()) is not None:
        drop_all(packet.arrivals)
    assert giver.roomy


def test_everything_that_was_said_is_read_before_the_end(ends: tuple[Lane, Lane]) -> None:
    """The order is the promise that makes a lane's end mean something: a WITHDRAW is never behind it."""
    giver, receiver = ends
    receiver.send(lanes.REPORT)  # unread by the giver: the kernel says ECONNRESET first
    with socket.socket() as sock:
        giver.send_offer([cargo(1, sock)])
    giver.send(lanes.WITHDRAW, [1])
    giver.close()
    packets = [receiver.receive(), receiver.receive()]
    assert [packet.kind for packet in packets if packet] == [lanes.OFFER, lanes.WITHDRAW]
    drop_all(packets[0].arrivals if packets[0] else ())
    with pytest.raises(EOFError):
        receiver.receive()
    with pytest.raises(EOFError):
        receiver.send(lanes.TAKE, [1])
    with socket.socket() as sock, pytest.raises(EOFError):
        receiver.send_offer([cargo(1, sock)])


def test_receiver_at_its_limit_of_descriptors_has_the_ids_and_no_descriptor(ends: tuple[Lane, Lane]) -> None:
    """It must be able to decline what it could not open; none of a cut packet is kept."""
    giver, receiver = ends
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as sock, socket.socket() as other:
        giver.send_offer([cargo(1, sock), cargo(2, other)])
        with open("/dev/null") as highest:  # the lowest free number
            limit = highest.fileno() + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            packet = receiver.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert packet is not None
    assert (packet.ids, list(packet.arrivals)) == ([1, 2], [])


_HEADER = struct.Struct("<BBHIII")
_ENTRY = struct.Struct("<QHHHBxI")


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        _HEADER.pack(ord("X"), 0, 0, 0, 0, 0),
        _HEADER.pack(lanes.COMMIT, 0, 2, 0, 0, 0) + bytes(8),
        _HEADER.pack(lanes.DECLINE, 77, 0, 0, 0, 0),
        _HEADER.pack(lanes.OFFER, 0, 3, 0, 0, 0),
        _HEADER.pack(lanes.OFFER, 0, 1, 0, 0, 0) + _ENTRY.pack(1, 2, 1, 6, 0, 5) + b"four",
        _HEADER.pack(lanes.OFFER, 0, 1, 0, 0, 0) + _ENTRY.pack(1, 2, 1, 6, 0, 5) + b"sixsix",
        _HEADER.pack(lanes.TAKE, 0, 0, 0, 0, 0),
    ],
    ids=["short", "unknown", "few ids", "no reason", "no entries", "short state", "long state", "stray descriptor"],
)
def test_garbage_is_refused_and_its_descriptors_are_closed(raw: tuple[socket.socket, Lane], data: bytes) -> None:
    """A lane is between programs that trust each other, and a bug of one must not be a leak of the other."""
    peer, lane = raw
    with socket.socket() as sock:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        peer.sendmsg([data], rights)
    with pytest.raises(BadPacket):
        lane.receive()


def test_state_that_could_change_under_its_reader_is_refused(raw: tuple[socket.socket, Lane]) -> None:
    """A memfd that is not sealed, or of another length, is none of a giver of ours."""
    peer, lane = raw
    memfd = os.memfd_create("test")
    os.write(memfd, b"s" * 70_000)
    data = _HEADER.pack(lanes.OFFER, 0, 1, 0, 0, 0) + _ENTRY.pack(1, 2, 1, 6, 1, 70_000)
    with socket.socket() as sock:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno(), memfd]))]
        peer.sendmsg([data], rights)
    os.close(memfd)
    with pytest.raises(BadPacket):
        lane.receive()


def test_offer_without_its_descriptors_is_as_good_as_unreadable(raw: tuple[socket.socket, Lane]) -> None:
    """The ids are there to be declined."""
    peer, lane = raw
    peer.send(_HEADER.pack(lanes.OFFER, 0, 1, 0, 0, 0) + _ENTRY.pack(9, 2, 1, 6, 0, 0))
    packet = lane.receive()
    assert packet is not None
    assert (packet.ids, list(packet.arrivals)) == ([9], [])


def test_arrival_is_closed_once() -> None:
    """Dropping it again closes nobody else's descriptor."""
    before = descriptors()
    arrival = Arrival(os.open("/dev/null", os.O_RDONLY), 2, 1, 0, b"", -1, 0)
    arrival.drop()
    arrival.drop()
    assert descriptors() == before
