"""Whether suspending is possible, and the reason where it is not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sockshare.kernel import epoll_rights, processes
from tests.support.registered import ROOT, Server, listen, start

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="starts processes of another user")

# It drops its rights only after the imports: another user may not read the checkout.
TRY = f"""
import json, os, sys
from sockshare.core.errors import NotPermitted
from sockshare.kernel import epoll, epoll_rights
facts = json.loads(sys.argv[1])
entry = epoll.Registration(*facts["entry"])
inode, fd = entry.inode, facts["fd"]
os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
said = [epoll_rights.permitted(entry.pid)]
for attempt in (
    lambda: epoll.registrations(entry.pid, [inode]),
    lambda: epoll.suspend(entry, fd),
    lambda: epoll.present(entry, fd),
    lambda: epoll.suspend_all(entry.pid, {{inode: fd}}),
):
    try:
        said.append(repr(attempt()))
    except NotPermitted as error:
        said.append(str(error))
print(json.dumps([epoll_rights.probe(), *said]))
"""

DROPPED = f"""
import os, sys
import __future__, asyncio, ctypes, select, signal, socket  # not to be had by that user, perhaps
os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
exec(compile(sys.argv.pop(1), "registered", "exec"))
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen() as sock:
        yield sock


def attempt(listener: socket.socket, server: Server) -> list[str | None]:
    facts = json.dumps({"entry": server.registration, "fd": listener.fileno()})
    run = subprocess.run(
        [sys.executable, "-c", TRY, facts],
        pass_fds=[listener.fileno()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert run.stderr == ""
    said: list[str | None] = json.loads(run.stdout)
    return said


def test_this_kernel_can_do_it() -> None:
    """The probe finds nothing missing, twice, and leaves no descriptor."""
    assert epoll_rights.probe() is None
    before = processes.descriptors(os.getpid())
    assert epoll_rights.probe() is None
    assert processes.descriptors(os.getpid()) == before


def test_own_child_is_permitted(listener: socket.socket) -> None:
    """A process that we may trace is permitted; one that is gone is said to be gone."""
    with start(listener, "level") as server:
        before = processes.descriptors(os.getpid())
        assert epoll_rights.permitted(server.pid) is None
        assert processes.descriptors(os.getpid()) == before
    assert epoll_rights.permitted(server.pid) == "no such process"


@needs_root
def test_another_users_process_is_refused_with_the_reason(listener: socket.socket) -> None:
    """Without the rights every call raises NotPermitted in one sentence, and the entry stays as it is."""
    with start(listener, "level") as server:
        before = server.registration
        probe, permitted, *refusals = attempt(listener, server)
        assert probe is None  # of its own epoll it is the tracer always
        assert permitted == f"it runs as uid 0, not {NOBODY}, and this process has no CAP_SYS_PTRACE"
        observe = f"can't observe the registrations of pid {server.pid}: "
        number = f"descriptor {before.tfd} in epoll {before.epfd}"
        assert refusals == [
            f"{observe}Permission denied (/proc/{server.pid}/fd)",
            f"can't suspend the registration of pid {server.pid}: Operation not permitted (epoll; {number})",
            f"{observe}Operation not permitted (kcmp)",
            f"{observe}Permission denied (/proc/{server.pid}/fd)",
        ]
        assert server.registration == before


@needs_root
def test_a_process_that_changed_its_user_is_refused_to_that_user(listener: socket.socket) -> None:
    """After setuid without exec a process is not dumpable: the same user may not touch it, root may."""
    app = (ROOT / "tests/support/apps/registered.py").read_text()
    command = [sys.executable, "-c", DROPPED, app, "level", "77", str(listener.fileno())]
    with Server(listener, command) as server:
        assert server.line() == "ready"
        _, permitted, *refusals = attempt(listener, server)
        assert permitted == (
            "it is not dumpable (it changed its user or capabilities), and this process has no CAP_SYS_PTRACE"
        )
        assert all(refusal and refusal.startswith("can't ") for refusal in refusals)
        assert epoll_rights.permitted(server.pid) is None
        assert server.registration.armed
