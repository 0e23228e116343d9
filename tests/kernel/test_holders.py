"""Who has a socket open is seen, by whatever way it came there; and how complete the look was is said."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from sockshare.kernel import holders

NOBODY = 65534
LONG = 20.0  # s: no look of a test ends by it
WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"


@contextmanager
def child(code: str = WAITS, *fds: int, **options: object) -> Iterator[int]:
    """A process that has inherited *fds* and waits to be ended."""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=fds,
        **options,  # type: ignore[call-overload]
    ) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_every_process_that_has_one_is_found(pair: tuple[socket.socket, socket.socket]) -> None:
    """Each with what it has, of what was asked for; a process that has none of it is not in the answer."""
    one, other = pair
    with child(WAITS, one.fileno()) as heir, child() as stranger:
        scan = holders.scan([inode(one), inode(other)], LONG)
        assert scan.holders == {os.getpid(): {inode(one), inode(other)}, heir: {inode(one)}}
        assert scan.holds(heir, inode(one)) is True
        assert scan.holds(heir, inode(other)) is False
        assert scan.holds(stranger, inode(one)) is False
        assert scan.looked >= 3
        assert not scan.unfinished


def test_what_is_closed_is_not_found(pair: tuple[socket.socket, socket.socket]) -> None:
    """Once the last descriptor is closed nobody has it; of no inodes there is no holder."""
    one, _ = pair
    number = inode(one)
    one.close()
    assert not holders.scan([number], LONG).holders
    assert not holders.scan([], LONG).holders


def test_time_that_is_over_leaves_processes_unfinished(pair: tuple[socket.socket, socket.socket]) -> None:
    """The look ends, says of how many it knows nothing, and does not take that for an answer."""
    one, _ = pair
    scan = holders.scan([inode(one)], 0.0)
    assert not scan.holders
    assert scan.looked == 0
    assert os.getpid() in scan.unfinished
    assert scan.holds(os.getpid(), inode(one)) is None


def test_large_process_is_left_unfinished_and_small_ones_are_not(pair: tuple[socket.socket, socket.socket]) -> None:
    """Time that runs out within a process with many descriptors has sufficed for those with few."""
    one, _ = pair
    many = 2000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = (
        f"import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}));"
        f"fds = [os.dup(0) for _ in range({many})];" + WAITS
    )
    with child(WAITS, one.fileno()) as small, child(code) as large:
        over = False

        def clock() -> float:
            """Over as soon as the large one is begun, for good."""
            nonlocal over
            over = over or f"/proc/{large}/fd" in open_directories()
            return LONG if over else 0.0

        scan = holders.scan([inode(one)], LONG, clock=clock)
        assert over
        assert scan.holds(small, inode(one)) is True
        assert large in scan.unfinished
        assert scan.holds(large, inode(one)) is None


def open_directories() -> set[str]:
    """What our own descriptors lead to."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_what_may_not_be_looked_into_is_counted(pair: tuple[socket.socket, socket.socket]) -> None:
    """Another user sees nothing of our descriptors, and says so instead of saying that we have none."""
    one, _ = pair
    inward, outward = os.pipe()
    with child(WAITS, one.fileno()) as heir:
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                scan = holders.scan([inode(one)], LONG)
                answer = [heir in scan.holders, scan.holds(heir, inode(one)), heir in scan.refused]
                os.write(outward, json.dumps(answer).encode())
            finally:
                os._exit(0)
        os.close(outward)
        with os.fdopen(inward) as pipe:
            answer = json.load(pipe)
        os.waitpid(pid, 0)
    assert answer == [False, None, True]


def test_no_descriptor_is_left(pair: tuple[socket.socket, socket.socket]) -> None:
    """A look costs no descriptor, also one that runs out of time."""
    before = len(os.listdir("/proc/self/fd"))
    holders.scan([inode(pair[0])], LONG)
    holders.scan([inode(pair[0])], 0.001)
    assert len(os.listdir("/proc/self/fd")) == before
