"""What the observer sees of real processes, and what it says where it may not look."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sockshare.broker.observer import Observer
from sockshare.kernel import epoll, processes, waits
from tests.support.registered import ROOT, inode, listen, start

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


def test_wait_that_cannot_be_seen_is_not_taken_for_none(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under Yama's ptrace_scope, which lets one see epolls; of one that is registered nothing is missed."""

    def refused(pid: int, inodes: object) -> list[waits.Wait]:
        raise PermissionError(errno.EPERM, "Operation not permitted", f"/proc/{pid}/mem")

    monkeypatch.setattr(waits, "waits", refused)
    observer = Observer({"web": (inode(listener), listener.fileno())})
    with start(listener, "level") as server, start(listener, "none") as other:
        assert observer.facts(server.pid, ["web"])["web"].unseen == ""
        said = f"can't see what pid {other.pid} waits for: Operation not permitted (/proc/{other.pid}/mem)"
        assert observer.facts(other.pid, ["web"])["web"].unseen == said


#: As an ``[fcgi-program:]`` has its listener.
ON_DESCRIPTOR_0 = """
import select, time
poll = select.epoll()
poll.register(0, select.EPOLLIN)
print("ready", flush=True)
time.sleep(60)
"""


def test_listener_on_descriptor_0_is_observed_and_suspended(listener: socket.socket) -> None:
    """Though nobody has shared it with us; no duplicate of it is kept, which would keep it bound."""
    observer, words = Observer({}), [sys.executable, "-c", ON_DESCRIPTOR_0]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=listener.fileno(), stdout=pipe, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            names = observer.listeners(server.pid)
            assert names == (f"socket:[{inode(listener)}]",)
            assert observer.look(server.pid, names) == (frozenset({inode(listener)}), "")
            before = [target for _, target in processes.descriptors(os.getpid()) if target == names[0]]

            async def play() -> str:
                said = await observer.suspend(server.pid, names)
                assert epoll.registrations(server.pid, [inode(listener)])[0].suspended
                assert await observer.resume(server.pid, names) == 1
                return said

            assert asyncio.run(play()) == f"1 registration of pid {server.pid} suspended"
            assert epoll.registrations(server.pid, [inode(listener)])[0].armed
            assert [target for _, target in processes.descriptors(os.getpid()) if target == names[0]] == before
        finally:
            server.kill()


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
