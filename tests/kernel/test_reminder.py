"""A program is told once more of what waits, by an entry of ours beside its own."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sockshare.kernel import epoll
from sockshare.kernel.epoll import Registration
from tests.support.registered import inode, listen

#: Says the data of each event it is told of, and accepts nothing.
_DEAF = """
import select, sys
poll = select.epoll()
poll.register(int(sys.argv[1]), int(sys.argv[2]))
print("registered", flush=True)
while True:
    for data, events in poll.poll():
        print(data, flush=True)
"""


@contextmanager
def deaf(listener: socket.socket, events: int) -> Iterator[tuple[subprocess.Popen[str], Registration]]:
    fd = listener.fileno()
    child = subprocess.Popen(
        [sys.executable, "-c", _DEAF, str(fd), str(events)], pass_fds=[fd], stdout=subprocess.PIPE, text=True
    )
    try:
        assert _line(child) == "registered"
        (entry,) = epoll.registrations(child.pid, [inode(listener)])
        yield child, entry
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], 20)
    assert ready, "the child says nothing"
    return child.stdout.readline().strip()


def _says_more(child: subprocess.Popen[str]) -> bool:
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], 0.2)
    return bool(ready)


@pytest.mark.parametrize("exclusive", [False, True], ids=["edge", "edge-exclusive"])
def test_a_program_is_told_again_of_what_it_was_told_already(exclusive: bool) -> None:
    """With its own data; its own entry is not touched, and nothing is left when the reminder is taken away."""
    events = select.EPOLLIN | select.EPOLLET | (select.EPOLLEXCLUSIVE if exclusive else 0)
    with (
        listen() as listener,
        deaf(listener, events) as (child, entry),
        socket.create_connection(listener.getsockname()),
    ):
        first = _line(child)
        assert first == str(entry.tfd)
        for _ in range(3):
            assert epoll.remind(entry, listener.fileno())
            assert _line(child) == first
            assert epoll.end_reminder(entry, listener.fileno())
            assert epoll.registrations(child.pid, [inode(listener)]) == [entry]


def test_a_reminder_that_is_left_there_reports_nothing_more() -> None:
    """As when the broker is killed before it takes it away: it was good for one event."""
    with listen() as listener, deaf(listener, select.EPOLLIN | select.EPOLLET) as (child, entry):
        with socket.create_connection(listener.getsockname()):
            _line(child)
            assert epoll.remind(entry, listener.fileno())
            _line(child)
        left = [one for one in epoll.registrations(child.pid, [inode(listener)]) if one != entry]
        assert [one.armed for one in left] == [False]
        with socket.create_connection(listener.getsockname()):
            _line(child)  # of its own entry
            assert not _says_more(child)


def test_nothing_is_done_where_the_epoll_is_gone() -> None:
    """Its process may end at any moment."""
    with listen() as listener, deaf(listener, select.EPOLLIN) as (child, entry):
        child.kill()
        child.wait()
        assert not epoll.remind(entry, listener.fileno())
        assert not epoll.end_reminder(entry, listener.fileno())
