"""Descriptors that arrive: close-on-exec, and not one is left of what is refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from sockshare.kernel.channel import Channel
from sockshare.kernel.descriptors import Truncated, close_all, receive, send


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a socket; the test leaves no descriptor."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = opened()
    with pair[0], pair[1]:
        yield pair
        assert opened() == before


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_are_close_on_exec(ends: tuple[socket.socket, socket.socket]) -> None:
    """From their first moment: another thread may start a program just then."""
    send(ends[0], b"x", [0, 1])
    data, fds = receive(ends[1], 16, 2)
    try:
        assert data == b"x"
        assert [os.get_inheritable(fd) for fd in fds] == [False, False]
    finally:
        close_all(fds)


def test_none_is_kept_when_more_come_than_were_asked_for(ends: tuple[socket.socket, socket.socket]) -> None:
    """Those that there was room for are closed too."""
    send(ends[0], b"x", [0, 1, 2])
    with pytest.raises(Truncated):
        receive(ends[1], 16, 2)


def test_what_nobody_took_is_closed_with_the_channel() -> None:
    """A broker that is killed in the middle of a message costs its host nothing."""
    before = opened()
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        send(theirs, b'{"type": "keep", "fds": 2', [0, 1])
        assert channel.receive() == []
        assert opened() == before + 4
        channel.close()
    assert opened() == before
