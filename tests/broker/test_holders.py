"""What the status says of the processes that hold a socket."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sockshare.broker import holders
from sockshare.broker.holders import Holders, Others
from sockshare.core import command_lines
from sockshare.kernel.holders import Scan


@contextmanager
def heir(sock: socket.socket, *arguments: str) -> Iterator[int]:
    """A process that has inherited *sock*, which nobody was asked for."""
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[sock.fileno()]) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process.pid
        finally:
            process.kill()


async def ask(sock: socket.socket, names: dict[int, str], most: int = holders.MOST) -> Others:
    inode = os.fstat(sock.fileno()).st_ino
    looking = Holders({"web": (inode, sock.fileno())})
    return await looking.others(await looking.look(), inode, names, {os.getpid()}, most)


def test_those_below_no_managed_process_come_first() -> None:
    """Each has its command, and the name of the managed process that it is or descends from."""
    with socket.socket() as sock, heir(sock, "one") as first, heir(sock, "two") as second:
        found = asyncio.run(ask(sock, {first: "web:1"}))
        assert [(one["pid"], one["process"]) for one in found.shown] == [(second, None), (first, "web:1")]
        assert found.left_out == 0
        assert found.shown[0]["command"].startswith(f"{sys.executable} -c ")
        below = asyncio.run(ask(sock, {os.getpid(): "web:2"}))
        assert {one["process"] for one in below.shown} == {"web:2"}


def test_what_there_is_no_room_for_is_counted() -> None:
    """The answer is bounded, and says how many it does not have."""
    with socket.socket() as sock, heir(sock), heir(sock), heir(sock):
        found = asyncio.run(ask(sock, {}, most=1))
        assert len(found.shown) == 1
        assert found.left_out == 2


def test_command_can_do_nothing_to_a_terminal() -> None:
    """Its bytes are a stranger's: control characters, bad UTF-8 and endless lines are shown as something else."""
    with socket.socket() as sock, heir(sock, "\x1b[2J", os.fsdecode(b"\xff\xfe"), "x" * 9999):
        (one,) = asyncio.run(ask(sock, {})).shown
        assert one["command"].isprintable()
        assert len(one["command"]) == command_lines.LONGEST
        one["command"].encode()
    with socket.socket() as sock, heir(sock, os.fsdecode(b"\xff")):
        (one,) = asyncio.run(ask(sock, {})).shown
        one["command"].encode()


def test_looks_are_shared_by_those_who_ask_meanwhile() -> None:
    """Of ten who ask at once, all but the first share one look, which begins after they asked."""

    async def ask_ten_times() -> list[Scan]:
        looking = Holders({"web": (1, -1)})
        return await asyncio.gather(*(looking.look() for _ in range(10)))

    scans = asyncio.run(ask_ten_times())
    assert len({id(scan) for scan in scans}) <= 2
