"""What waits on sockets of every kind, and whether it was taken."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sockshare.kernel import queues
from sockshare.kernel.queues import NOTHING

Send = Callable[[], socket.socket]
Kind = tuple[socket.socket, Send, Callable[[], None]]  # the shared socket, one more on it, take one from it
KINDS = ["tcp", "tcp6", "udp", "unix", "unixgram", "unixseqpacket"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    name: str = request.param
    type_ = {"udp": socket.SOCK_DGRAM, "unixgram": socket.SOCK_DGRAM, "unixseqpacket": socket.SOCK_SEQPACKET}.get(
        name, socket.SOCK_STREAM
    )
    family = socket.AF_UNIX if name.startswith("unix") else socket.AF_INET6 if name == "tcp6" else socket.AF_INET
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(socket.socket(family, type_))
        shared.bind(
            str(tmp_path / "s")
            if family == socket.AF_UNIX
            else ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0)
        )
        if type_ != socket.SOCK_DGRAM:
            shared.listen(16)
        shared.setblocking(False)

        def send() -> socket.socket:
            client = stack.enter_context(socket.socket(family, type_))
            client.connect(shared.getsockname())
            if type_ == socket.SOCK_DGRAM:
                client.send(f"datagram of {client.fileno()}".encode())
            return client

        def take() -> None:
            if type_ == socket.SOCK_DGRAM:
                shared.recv(100)
            else:
                shared.accept()[0].close()

        yield shared, send, take


def test_nothing_waits_on_a_fresh_socket(kind: Kind) -> None:
    """And after what waited was taken, nothing again."""
    shared, send, take = kind
    assert queues.look(shared) == NOTHING
    send()
    assert queues.look(shared).amount > 0
    take()
    assert queues.look(shared) == NOTHING


def test_looking_takes_nothing(kind: Kind) -> None:
    """However often, however closely."""
    shared, send, take = kind
    send()
    first = queues.look(shared)
    for closely in (False, True, True):
        assert queues.look(shared, closely=closely).amount == first.amount
    take()


def test_more_that_arrives_is_not_taken_for_progress(kind: Kind) -> None:
    """Only what goes away tells that somebody takes."""
    shared, send, _ = kind
    send()
    before = queues.look(shared, closely=True)
    send()
    send()
    assert not queues.look(shared, closely=True).was_taken_from(before)


def test_what_was_taken_is_noticed(kind: Kind) -> None:
    """A queue that became shorter; and, where the kernel tells who is in it, one that is as long as before."""
    shared, send, take = kind
    send()
    send()
    before = queues.look(shared, closely=True)
    take()
    assert queues.look(shared, closely=True).was_taken_from(before)
    if before.clients or before.first:
        send()
        assert queues.look(shared, closely=True).was_taken_from(before)


def test_a_client_that_resets_its_connection_is_not_taken_for_progress() -> None:
    """As health checks do: what they leave behind stands in the queue of one that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as shared:
        clients = [socket.create_connection(shared.getsockname()) for _ in range(3)]
        try:
            before = queues.look(shared, closely=True)
            clients[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            clients[0].close()
            clients.append(socket.create_connection(shared.getsockname()))
            assert not queues.look(shared, closely=True).was_taken_from(before)
            for _ in range(2):  # the one that was reset, and one that waits
                shared.accept()[0].close()
            clients.append(socket.create_connection(shared.getsockname()))
            assert queues.look(shared, closely=True).was_taken_from(before)
        finally:
            for client in clients:
                client.close()


def test_a_listener_that_is_shut_down_has_nothing_waiting() -> None:
    """Whoever did it."""
    with socket.create_server(("127.0.0.1", 0)) as shared, socket.create_connection(shared.getsockname()):
        assert queues.look(shared).amount == 1
        shared.shutdown(socket.SHUT_RDWR)
        assert queues.look(shared) == NOTHING
