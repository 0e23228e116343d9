"""The sockets of the runtime directory, and the shared ones before they are handed out."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sockshare.kernel import listeners


@pytest.fixture
def tight_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("tight_umask")
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_socket_has_its_mode_whatever_the_umask(tmp_path: Path, kind: int) -> None:
    """Programs of every user reach it; it is non-blocking and close-on-exec; nothing else is left in the directory."""
    path = tmp_path / "door"
    with listeners.make(str(path), kind) as sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert not sock.get_inheritable()
        assert not listeners.is_blocking(sock.fileno())
        assert listeners.is_listening(sock) == (kind != socket.SOCK_DGRAM)
        assert [entry.name for entry in tmp_path.iterdir()] == ["door"]


def test_nobody_is_refused_while_a_socket_is_replaced(tmp_path: Path) -> None:
    """A client that connects all the time finds one listener or the next: there is no moment without."""
    path = str(tmp_path / "door")
    made = [listeners.make(path, socket.SOCK_STREAM)]
    failures: list[OSError] = []
    connected = [0]
    begun, over = threading.Event(), threading.Event()

    def connect() -> None:
        while not over.is_set():
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(path)
                    connected[0] += 1
                except OSError as error:
                    failures.append(error)
            begun.set()

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        assert begun.wait(10)
        for _ in range(200):
            made += [listeners.make(path, socket.SOCK_STREAM)]
    finally:
        over.set()
        thread.join()
        for sock in made:
            sock.close()
    assert not failures
    assert connected[0] > 1


def test_path_is_refused_when_it_is_too_long(tmp_path: Path) -> None:
    """107 bytes are an address, 108 are a clear error, and nothing is made."""
    longest = str(tmp_path / ("x" * (listeners.LONGEST_PATH - len(str(tmp_path)) - 1)))
    listeners.make(longest, socket.SOCK_DGRAM).close()
    with pytest.raises(ValueError, match=r"can't make socket .*107 bytes \(108\)"):
        listeners.make(longest + "x", socket.SOCK_DGRAM)
    assert [str(entry) for entry in tmp_path.iterdir()] == [longest]


def test_sender_is_known_when_it_spoke_before_anybody_listened(tmp_path: Path) -> None:
    """A datagram that waits has its sender's credentials, without the reader having asked for them beforehand."""
    path = str(tmp_path / "notify")
    with listeners.make(path, socket.SOCK_DGRAM) as sock, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"READY=1", path)
        _, [(_, kind, data)], _, _ = sock.recvmsg(100, 100)
        assert kind == socket.SCM_CREDENTIALS
        assert struct.unpack("3i", data)[0] == os.getpid()


@pytest.mark.parametrize(
    ("family", "kind", "bind", "expected"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0), "tcp://127.0.0.1:{}"),
        (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0), "tcp://[::1]:{}"),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0), "udp://127.0.0.1:{}"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "s", "unix://{}"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "s", "unixgram://{}"),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, "s", "unixseqpacket://{}"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "\0sockshare-test", "unix://@sockshare-test"),
    ],
)
def test_address_names_where_a_socket_is_bound(
    tmp_path: Path, family: int, kind: int, bind: Any, expected: str
) -> None:
    """As the configuration writes addresses, also of a descriptor that Python took for AF_UNIX."""
    with socket.socket(family, kind) as sock:
        try:
            sock.bind(str(tmp_path / bind) if bind == "s" else bind)
        except OSError:
            pytest.skip("no such family on this machine")
        where = sock.getsockname()
        assert listeners.address(sock) == expected.format(where[1] if isinstance(where, tuple) else where)


def test_shared_socket_is_fit_for_every_program_when_prepared() -> None:
    """Non-blocking, as all duplicates then are; and what it accepts sends at once (TCP_NODELAY is inherited)."""
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.socket(fileno=os.dup(sock.fileno())) as duplicate:
        sock.setblocking(True)
        listeners.prepare(sock)
        assert not listeners.is_blocking(duplicate.fileno())
        with socket.create_connection(sock.getsockname()):
            sock.settimeout(5)
            connection, _ = sock.accept()
            with connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        listeners.prepare(sock, blocking=True)
        assert listeners.is_blocking(duplicate.fileno())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        listeners.prepare(other)
        assert not listeners.is_tcp(other)
        assert fcntl.fcntl(other, fcntl.F_GETFL) & os.O_NONBLOCK


def test_queue_is_seen() -> None:
    """The connections that nobody has accepted, and the backlog; nothing of sockets that have no such queue."""
    with socket.create_server(("127.0.0.1", 0), backlog=7) as sock:
        assert listeners.queue(sock) == (0, 7)
        with socket.create_connection(sock.getsockname()), socket.create_connection(sock.getsockname()):
            assert listeners.queue(sock) == (2, 7)
        sock.shutdown(socket.SHUT_RD)
        assert not listeners.is_listening(sock)
        assert listeners.queue(sock) is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        assert listeners.queue(udp) is None


def test_inode_is_that_of_all_duplicates() -> None:
    """And no file's: a descriptor that is no socket is refused."""
    with socket.socket() as sock, socket.socket() as other:
        duplicate = os.dup(sock.fileno())
        assert listeners.inode(duplicate) == listeners.inode(sock.fileno()) != listeners.inode(other.fileno())
        os.close(duplicate)
        assert not listeners.reuseport(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        assert listeners.reuseport(sock)
    with open(os.devnull) as file, pytest.raises(OSError, match="socket"):
        listeners.inode(file.fileno())
