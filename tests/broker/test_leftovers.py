"""What is found of real processes that are left over."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import pytest

from sockshare.broker import leftovers
from sockshare.broker.drain import Address
from sockshare.broker.hostlink import HostLink
from sockshare.broker.leftovers import Leftovers
from sockshare.broker.state import State
from sockshare.core.leftovers import Ended, Leftover
from sockshare.kernel import holders, peers
from tests.support.registered import inode, listen

SERVER = """
import select, sys, time
poll = select.epoll()
poll.register(int(sys.argv[1]), select.EPOLLIN)
print("ready", flush=True)
time.sleep(60)
"""
SHELL = "{python} -c {server} {fd} & echo $!; wait"


@contextmanager
def orphans(listener: socket.socket, *, notifies: str = "", server: str = SERVER) -> Iterator[tuple[int, int, int]]:
    """A managed process that has ended, the master that it has left, and that one's worker, which serves."""
    fd = listener.fileno()
    script = SHELL.format(python=sys.executable, server=shlex.quote(server), fd=fd)
    words = ["sh", "-c", 'sh -c "$0" & echo $!; exec sleep 60', script]
    environment = {**os.environ, "NOTIFY_SOCKET": notifies}
    pids: list[int] = []
    managed = subprocess.Popen(
        words, pass_fds=[fd], stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    try:
        assert managed.stdout is not None
        lines = [managed.stdout.readline().strip() for _ in range(3)]
        assert "ready" in lines
        pids = sorted(int(line) for line in lines if line.isdecimal())
        managed.kill()
        managed.wait()
        master, worker = pids if peers.parent(pids[1]) == pids[0] else reversed(pids)
        yield managed.pid, master, worker
    finally:
        managed.kill()
        managed.wait()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert managed.stdout is not None
        managed.stdout.read()  # to the end of those that have it
        managed.stdout.close()


def find(
    listener: socket.socket,
    ended: dict[int, Ended],
    live: dict[int, int] | None = None,
    addresses: dict[int, list[Address]] | None = None,
    given_up: int | None = None,
) -> list[Leftover]:
    number = inode(listener)
    scan = holders.scan([number], 5.0)
    whose = leftovers._Whose({os.getpid(): 0} if live is None else live, ended, "/run/nowhere")
    found, known = leftovers._find(scan, {number: "web"}, addresses or {}, whose, [os.getpid()], given_up)
    assert known >= ended.keys()
    return found


def test_master_of_what_serves_is_ended_with_it() -> None:
    """It is the worker that has the socket registered; its master, which only has it open, would start another."""
    with listen() as listener, orphans(listener) as (managed, master, worker):
        (found,) = find(listener, {managed: Ended("web", 1)})
        assert (found.pid, found.socket, found.origin) == (worker, "web", managed)
        assert found.root == (master, peers.start_time(master))
        assert found.remedy("web").endswith(f"`kill {master} {worker}`")


BUSY = """
import socket, sys, time
server = socket.socket(fileno=int(sys.argv[1]))
server.setblocking(True)
accepted, _ = server.accept()
accepted.recv(100)
print("ready", flush=True)
time.sleep(60)
"""


def test_one_that_is_at_work_is_found_by_its_connection() -> None:
    """A worker that handles a request waits for nothing at that moment, for as long as that takes."""
    with listen() as listener, socket.create_connection(listener.getsockname()) as client:
        client.sendall(b"request")
        with orphans(listener, server=BUSY) as (managed, _, worker):
            host, port = listener.getsockname()
            addresses = {inode(listener): [Address(int(listener.family), port, host)]}
            (found,) = find(listener, {managed: Ended("web", 1)}, addresses=addresses)
            assert found.pid == worker


LOADING = "import time; print('ready', flush=True); time.sleep(60)"


def test_what_a_given_up_one_has_left_is_found_before_it_serves() -> None:
    """A worker that was forked last loads still; of an old version, which has served, such a process is left alone."""
    with listen() as listener, orphans(listener, server=LOADING) as (managed, master, worker):
        ended = {managed: Ended("web", 1)}
        assert find(listener, ended) == []
        found = find(listener, ended, given_up=managed)
        assert {one.pid for one in found} == {master, worker}
        assert {one.root[0] for one in found} == {master}


def test_stranger_is_its_own_root_and_nobodys() -> None:
    """Of a process that nobody knows no ancestor is touched."""
    with listen() as listener, orphans(listener) as (_, _, worker):
        (found,) = find(listener, {})
        assert (found.pid, found.origin, found.root[0]) == (worker, None, worker)


def test_what_belongs_to_a_live_process_is_not_left_over() -> None:
    """Its worker serves, as it should."""
    with listen() as listener, orphans(listener) as (_, master, _):
        assert find(listener, {}, {master: 0}) == []


@pytest.mark.parametrize("ours", [True, False])
def test_notify_socket_tells_whose_it_is(ours: bool) -> None:
    """Where a server has made a session of its own, unless the socket is of another broker."""
    directory = "/run/nowhere" if ours else "/run/elsewhere"
    with listen() as listener, orphans(listener, notifies=f"{directory}/notify/12345") as (_, _, worker):
        number = inode(listener)
        whose = leftovers._Whose({}, {12345: Ended("web", 1)}, "/run/nowhere")
        scan = holders.scan([number], 5.0)
        found, _ = leftovers._find(scan, {number: "web"}, {}, whose, [os.getpid()], None)
        assert [(one.pid, one.origin) for one in found] == [(worker, 12345 if ours else None)]


def test_look_that_nobody_has_asked_for_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of a task ends the broker; a lack of descriptors at a death is to end nothing."""
    monkeypatch.setattr(leftovers, "_LOOK_AFTER", 0.0)

    async def look() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def body() -> None:
        state = SimpleNamespace(holders=SimpleNamespace(look=look))
        found = Leftovers(cast(State, state), cast(HostLink, SimpleNamespace()), "/run/nowhere")
        found.look_after_deaths()
        assert found._looking is not None
        await found._looking

    asyncio.run(body())


def test_nothing_is_said_to_serve_nothing_that_no_descriptor_was_left_to_look_at() -> None:
    """What was not seen is no answer; the lack of descriptors is told to who asked."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listen() as listener, orphans(listener) as (_, _, worker):
        number = inode(listener)
        assert leftovers._served(worker, [number], {}) == {number}
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                leftovers._served(worker, [number], {})
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
