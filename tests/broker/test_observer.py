"""What the observer sees of real processes, and what it says where it may not look."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sockshare.broker.observer import Observer
from sockshare.kernel import processes
from tests.support.registered import APP, ROOT, Server, inode, listen, start

NOBODY = 65534

# It drops its rights only after the imports: another user may not read the checkout.
LOOK = f"""
import json, os, sys
from sockshare.broker.observer import Observer
pid, inode, fd = json.loads(sys.argv[1])
os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
inodes, unseen = Observer({{"web": (inode, fd)}}).look(pid, ["web"])
print(json.dumps([sorted(inodes), unseen]))
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen() as sock:
        yield sock


def test_what_is_registered_is_seen(listener: socket.socket) -> None:
    """And that it may be looked into, also where there is nothing to see."""
    observer = Observer({"web": (inode(listener), listener.fileno())})
    with start(listener, "level") as server, start(listener, "none") as other:
        assert observer.look(server.pid, ["web"]) == (frozenset({inode(listener)}), "")
        assert observer.look(other.pid, ["web"]) == (frozenset(), "")
    assert observer.look(server.pid, ["web"]) == (frozenset(), "")  # it has died


@pytest.mark.skipif(os.geteuid() != 0, reason="looks as another user")
def test_it_is_said_why_a_process_cannot_be_looked_into(listener: socket.socket) -> None:
    """It is not taken for one that shows nothing."""
    with start(listener, "level") as server:
        facts = json.dumps([server.pid, inode(listener), listener.fileno()])
        words = [sys.executable, "-c", LOOK, facts]
        run = subprocess.run(
            words, pass_fds=[listener.fileno()], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
        )
        assert run.stderr == ""
        assert json.loads(run.stdout) == [
            [],
            f"can't observe the registrations of pid {server.pid}: Permission denied (/proc/{server.pid}/fd)",
        ]


class OnDescriptor0(Server):
    """As an ``[fcgi-program:]`` has its listener."""

    def __init__(self, sock: socket.socket) -> None:
        shell = f"exec {sys.executable} {APP} level 77 {sock.fileno()} <&{sock.fileno()}"
        super().__init__(sock, ["sh", "-c", shell])


def test_listener_on_descriptor_0_is_observed_and_suspended(listener: socket.socket) -> None:
    """Though nobody has shared it with us; no duplicate of it is kept, which would keep it bound."""
    observer = Observer({})
    server = OnDescriptor0(listener)
    try:
        assert server.line() == "ready"
        names = observer.listeners(server.pid)
        assert names == (f"socket:[{inode(listener)}]",)
        assert observer.look(server.pid, names) == (frozenset({inode(listener)}), "")
        before = processes.descriptors(os.getpid())

        async def play() -> str:
            said = await observer.suspend(server.pid, names)
            assert server.registration.suspended
            assert await observer.resume(server.pid, names) == 1
            return said

        assert asyncio.run(play()) == f"1 registration of pid {server.pid} suspended"
        assert server.registration.armed
        mine = f"socket:[{inode(listener)}]"
        now = processes.descriptors(os.getpid())
        assert [fd for fd, target in now if target == mine] == [fd for fd, target in before if target == mine]
    finally:
        server.process.kill()
        server.process.communicate()


def test_other_sockets_on_descriptor_0_are_no_listeners() -> None:
    """One end of a pair is none that connections come to."""
    one, other = socket.socketpair()
    with one, other, subprocess.Popen(["sleep", "60"], stdin=one.fileno()) as process:
        try:
            assert Observer({}).listeners(process.pid) == ()
            assert Observer({}).listeners(os.getpid()) == ()
        finally:
            process.kill()


def test_nobody_says_that_he_looked_where_there_was_nothing_to_look_at() -> None:
    """A program without sockets was not seen to wait in select, poll or accept."""

    async def play() -> str:
        return await Observer({}).suspend(os.getpid(), ())

    assert asyncio.run(play()) == "nothing to suspend: its section names no socket, so nobody looked"
