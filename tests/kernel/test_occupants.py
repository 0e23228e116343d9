"""Who has an address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockshare.kernel import occupants
from sockshare.kernel.occupants import Occupant, describe
from tests.support.circusd import wait_until

TAKES = """
import socket, sys
family, kind, address = sys.argv[1:]
sock = socket.socket(getattr(socket, family), getattr(socket, kind))
sock.bind(address if family == "AF_UNIX" else (address, 0))
if kind == "SOCK_STREAM":
    sock.listen()
print(sock.getsockname() if family == "AF_UNIX" else sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def taken(family: str, kind: str, address: str) -> Iterator[tuple[int, str]]:
    """The pid of a process that has a socket at *address*, and its port."""
    command = [sys.executable, "-c", TAKES, family, kind, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("family", "kind", "bound", "wanted", "found"),
    [
        ("AF_INET", "tcp", "127.0.0.1", "127.0.0.1", True),
        ("AF_INET", "tcp", "127.0.0.1", "0.0.0.0", True),
        ("AF_INET", "tcp", "0.0.0.0", "127.0.0.1", True),
        ("AF_INET", "tcp", "127.0.0.1", "127.0.0.2", False),
        ("AF_INET6", "tcp", "::", "127.0.0.1", True),
        ("AF_INET6", "tcp", "::1", "::1", True),
        ("AF_INET", "udp", "127.0.0.1", "127.0.0.1", True),
    ],
)
def test_port_is_its_processs(family: str, kind: str, bound: str, wanted: str, found: bool) -> None:
    """By pid and command; at an address that would meet."""
    with taken(family, {"tcp": "SOCK_STREAM", "udp": "SOCK_DGRAM"}[kind], bound) as (pid, port):
        who = occupants.of_port(kind, wanted, int(port))
        assert [one.pid for one in who] == ([pid] if found else [])
        assert all(one.command.startswith(sys.executable) for one in who)
        assert occupants.of_port({"tcp": "udp", "udp": "tcp"}[kind], wanted, int(port)) == []


def test_path_is_its_processs(tmp_path: Path) -> None:
    """One of several names; a file that nobody is bound to is nobody's."""
    path = str(tmp_path / "a b.sock")
    with taken("AF_UNIX", "SOCK_STREAM", path) as (pid, _):
        assert [one.pid for one in occupants.of_path("/nowhere", path)] == [pid]
    assert occupants.of_path(path) == []


def test_each_of_several_addresses_has_its_own() -> None:
    """By one look; an address of nobody's has nobody."""
    with taken("AF_INET", "SOCK_STREAM", "127.0.0.1") as one, taken("AF_INET", "SOCK_DGRAM", "127.0.0.1") as two:
        tables = occupants.Tables()
        wanted = [tables.of_port("tcp", "", int(one[1])), set(), tables.of_port("udp", "", int(two[1]))]
        found = occupants.of_each(wanted)
    assert [[one.pid for one in its] for its in found] == [[one[0]], [], [two[0]]]


def test_process_that_has_wiped_its_arguments_has_its_name_all_the_same() -> None:
    """As some do that show a title of their own."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # execve(2) with a single, blank argument.
        program = "import os, sys; os.execve(sys.argv[1], [' '], {})"
        with subprocess.Popen(
            [sys.executable, "-c", program, "/bin/cat"], stdin=subprocess.PIPE, pass_fds=[taken.fileno()]
        ) as process:
            try:
                wait_until(lambda: os.readlink(f"/proc/{process.pid}/exe").endswith("cat"), 10, "it is cat")
                who = occupants.of_port("tcp", "127.0.0.1", taken.getsockname()[1])
                assert [(one.pid, one.command) for one in who] == [(process.pid, "[cat]")]
            finally:
                process.kill()


def test_own_socket_is_not_told() -> None:
    """Who asks knows what it has."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        assert occupants.of_port("tcp", "127.0.0.1", own.getsockname()[1]) == []


def test_sentence_says_how_it_becomes_free() -> None:
    """One, several, another manager's, those of who asks."""
    one, two = Occupant(5, "x --y", 0), Occupant(6, "z", 0)
    assert describe([one]) == " by pid 5 (x --y); end it: kill 5"
    assert describe([one, two]) == " by pid 5 (x --y), pid 6 (z); end them: kill 5 6"
    assert describe([]) == ""
    many = [Occupant(pid, "x", 0) for pid in range(10, 20)]
    assert describe(many).count("pid") == 8, "the others are counted"
    assert ", and 2 more; end them: kill 10 11 12 13 14 15 16 17 18 19" in describe(many)
    mine = Occupant(7, "w", os.getpid())
    assert describe([mine], own=os.getpid()) == ""
    assert f"of the manager pid {os.getpid()} (" in describe([mine])
    assert "kill" not in describe([mine]).rpartition(")")[2]
