"""Ending a connection from outside: the server reads the end of file, and only if nothing has come meanwhile."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sockshare.kernel import connections, strike
from tests.support.registered import inode, listen, until


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection: the server's, the client's."""
    with listen(request.param) as listener:
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname()[:2], timeout=5) as client:
            server, _ = listener.accept()
            server.settimeout(5)
            with server:
                yield server, client


@contextmanager
def duplicate(sock: socket.socket) -> Iterator[int]:
    """A momentary duplicate, as of another process's socket."""
    fd = strike.duplicate(os.getpid(), sock.fileno())
    try:
        yield fd
    finally:
        os.close(fd)


def received(server: socket.socket) -> int:
    """What the kernel says has come."""
    local, family = server.getsockname(), server.family
    (one,) = [one for one in connections.established(family, local[1]) if one.inode == inode(server)]
    assert one.info is not None
    return one.info.bytes_received


def test_server_reads_the_end_and_can_still_answer(pair: tuple[socket.socket, socket.socket]) -> None:
    """Only reading ends: what a thread has in hand goes out."""
    server, client = pair
    client.sendall(b"request")
    assert server.recv(100) == b"request"
    with duplicate(server) as fd:
        assert strike.end_reading(fd, inode(server), 7)
    assert server.recv(100) == b""
    server.sendall(b"answer")
    server.close()
    assert client.recv(100) == b"answer"
    assert client.recv(100) == b""


def test_connection_with_a_request_that_nobody_read_is_left_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    """It has come before the strike, so it is served."""
    server, client = pair
    client.sendall(b"request")
    until(lambda: received(server) == 7, "the request has come")
    with duplicate(server) as fd:
        assert not strike.end_reading(fd, inode(server), 0)
        assert not strike.end_reading(fd, inode(server), 7), "it was counted, and is still unread"
    assert server.recv(100) == b"request"
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.recv(100)


def test_connection_that_has_received_more_since_it_was_judged_is_left_alone(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A request that was read already is at work."""
    server, client = pair
    client.sendall(b"request")
    assert server.recv(100) == b"request"
    with duplicate(server) as fd:
        assert not strike.end_reading(fd, inode(server), 0)
    client.sendall(b"more")
    assert server.recv(100) == b"more"


def test_descriptor_that_is_another_socket_by_now_is_left_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    """Numbers are used again."""
    server, client = pair
    with duplicate(server) as fd:
        assert not strike.end_reading(fd, inode(server) + 1, 0)
    client.sendall(b"request")
    assert server.recv(100) == b"request"


def test_connection_of_another_process_is_ended(pair: tuple[socket.socket, socket.socket]) -> None:
    """The duplicate is fetched out of that process, and is gone when it begins another program."""
    server, _ = pair
    server.setblocking(True)  # for the other process too: it waits
    program = f"import socket; print(socket.socket(fileno={server.fileno()}).recv(9), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program], pass_fds=[server.fileno()], stdout=subprocess.PIPE, text=True
    ) as process:
        number, fd, before = server.fileno(), -1, len(os.listdir("/proc/self/fd"))
        try:
            fd = strike.duplicate(process.pid, number)
            assert not os.get_inheritable(fd)
            assert strike.end_reading(fd, inode(server), 0)
            os.close(fd)
            assert process.communicate(timeout=10)[0] == "b''\n"
        finally:
            process.kill()
    assert len(os.listdir("/proc/self/fd")) == before - 1, "a descriptor is left"  # its pipe is closed too


def test_duplicate_of_what_is_not_there_is_an_error() -> None:
    """No such process: ProcessLookupError; no such descriptor: OSError, in one sentence."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    with pytest.raises(ProcessLookupError):
        strike.duplicate(process.pid, 0)
    with pytest.raises(OSError, match=f"can't duplicate descriptor 9999 of pid {os.getpid()}: Bad file descriptor"):
        strike.duplicate(os.getpid(), 9999)
