"""The private channel: what arrives is whole, and reading it comes to an end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from sockshare.core.errors import ProtocolError
from sockshare.kernel.channel import Channel, Message

MANY = 64 * 1024 * 1024


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the other end of it."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        yield channel, theirs
        channel.close()


def flood(sock: socket.socket, piece: bytes) -> list[int]:
    """Write *piece* over and over, up to MANY bytes, as fast as it is read; how much it came to, at the end."""
    sent = [0]

    def write() -> None:
        try:
            while sent[0] < MANY:
                sent[0] += sock.send(piece)
        except OSError:
            pass

    threading.Thread(target=write, daemon=True).start()
    return sent


def read_for_ever(channel: Channel) -> None:
    while True:
        channel.receive()


def test_endless_line_is_refused_while_it_is_still_being_written(ends: tuple[Channel, socket.socket]) -> None:
    """Who writes as fast as we read does not keep us: as much is read as a line may have, not all that comes."""
    channel, other = ends
    sent = flood(other, b"x" * 65536)
    with pytest.raises(ProtocolError, match="a line of more than"):
        read_for_ever(channel)
    assert sent[0] < MANY / 4


def test_endless_messages_are_returned_in_pieces(ends: tuple[Channel, socket.socket]) -> None:
    """One `receive` returns some hundred of them, and leaves the rest for the next."""
    channel, other = ends
    flood(other, b'{"type": "journal"}\n' * 1000)
    counts: list[int] = []
    while len(counts) < 20:
        counts += filter(None, [len(channel.receive())])
    assert max(counts) < 2000


def test_long_message_arrives_in_one_piece(ends: tuple[Channel, socket.socket]) -> None:
    """Longer than what one `receive` is satisfied with, as the hello of many processes is."""
    channel, other = ends
    sender = Channel(other.dup())
    message = {"type": "hello", "text": "x" * 1_000_000}
    sender.send(message)
    got: list[tuple[Message, list[int]]] = []
    while not got:
        sender.flush()
        got = channel.receive()
    assert [one for one, _ in got] == [message]
    sender.close()


@pytest.mark.parametrize("count", [b"1", b"-1", b'"x"', b"99999999999"])
def test_descriptors_that_did_not_come_are_an_error_of_the_protocol(
    ends: tuple[Channel, socket.socket], count: bytes
) -> None:
    """One that its caller expects; what is announced is not waited for."""
    channel, other = ends
    other.sendall(b'{"type": "keep", "fds": ' + count + b"}\n")
    with pytest.raises(ProtocolError, match=r"descriptors"):
        channel.receive()
