"""What /proc says of real processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockshare.kernel import processes
from tests.support.registered import listen, start, until

GONE = 2**22 + 1  # above the largest pid that Linux can give

TREE = """
import os, sys, threading
def work():
    if os.fork() == 0:
        if os.fork() == 0:
            print(os.getpid(), os.getppid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    threading.Event().wait()
thread = threading.Thread(target=work)
thread.start()
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that says a line and waits for the end of its input."""
    code = "import signal, sys; signal.signal(signal.SIGUSR1, print); print('ready', flush=True); sys.stdin.read()"
    yield from process(code, "two words", "", "-x")


def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def test_fork_has_not_executed_until_it_does() -> None:
    """A copy of its parent becomes a program by execve(2), and not before."""
    inward, outward = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(outward)
            os.read(inward, 1)
            os.execv("/bin/sleep", ["sleep", "60"])
        finally:
            os._exit(1)
    try:
        os.close(inward)
        assert not processes.has_executed(pid)
        os.close(outward)
        deadline = time.monotonic() + 10
        while not processes.has_executed(pid):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert processes.has_executed(os.getpid())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        processes.has_executed(pid)


def test_tree_has_every_descendant_whichever_thread_forked_it() -> None:
    """Parents come before children; a child of a second thread and its own child are found."""
    for started in process(TREE):
        grandchild, child = map(int, line(started).split())
        assert processes.tree(started.pid) == [started.pid, child, grandchild]
        assert set(processes.tree(os.getpid())) >= {os.getpid(), started.pid, child, grandchild}
        os.kill(child, signal.SIGKILL)
        os.kill(grandchild, signal.SIGKILL)


def test_a_handler_is_told_from_the_default(child: subprocess.Popen[str]) -> None:
    """Caught is what has a handler: not a default (TERM), not an ignored signal (PIPE)."""
    assert line(child) == "ready"
    assert processes.catches(child.pid, signal.SIGUSR1)
    assert processes.catches(child.pid, signal.SIGINT)
    assert not processes.catches(child.pid, signal.SIGTERM)
    assert not processes.catches(child.pid, signal.SIGPIPE)
    assert not processes.catches(child.pid, signal.SIGUSR2)


def test_runtime_is_known_whatever_its_version_and_after_an_upgrade(tmp_path: Path) -> None:
    """Debian's ruby is ruby3.1; the file of one that was upgraded while it runs is deleted."""
    ruby = tmp_path / "ruby3.1"
    shutil.copy(os.path.realpath(sys.executable), ruby)
    code = "print('ready', flush=True); input()"
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix}
    pipe = subprocess.PIPE
    with subprocess.Popen([ruby, "-c", code], stdin=pipe, stdout=pipe, text=True, env=environment) as running:
        assert line(running) == "ready"
        assert processes.runtime_with_handlers(running.pid) == "ruby"
        ruby.unlink()
        assert processes.runtime_with_handlers(running.pid) == "ruby"
        running.communicate("\n")


def test_state_follows_stop_and_death(child: subprocess.Popen[str]) -> None:
    """A stopped process is T and alive; a dead one that nobody reaped is Z, not alive, in the tree, and has nothing."""
    assert line(child) == "ready"
    until(lambda: processes.state(child.pid) == "S", "it waits")
    os.kill(child.pid, signal.SIGSTOP)
    until(lambda: processes.state(child.pid) == "T", "it is stopped")
    assert processes.alive(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: processes.state(child.pid) == "Z", "it is a zombie")
    assert not processes.alive(child.pid)
    assert processes.tree(child.pid) == [child.pid]
    assert processes.command(child.pid) == []
    child.wait()
    assert not processes.alive(child.pid)


def test_command_is_the_arguments_as_given(child: subprocess.Popen[str]) -> None:
    """Spaces and empty arguments survive."""
    assert line(child) == "ready"
    assert processes.command(child.pid)[0] == sys.executable
    assert processes.command(child.pid)[-3:] == ["two words", "", "-x"]


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_uid_is_the_effective_one() -> None:
    """It follows seteuid, which leaves the real uid."""
    for started in process("import os, sys; os.seteuid(65534); print('ready', flush=True); sys.stdin.read()"):
        assert line(started) == "ready"
        assert processes.uid(started.pid) == 65534
    assert processes.uid(os.getpid()) == os.geteuid()


def test_memory_is_in_bytes(child: subprocess.Popen[str]) -> None:
    """An interpreter has between 2 MiB and 1 GiB resident."""
    assert line(child) == "ready"
    assert 2 << 20 < processes.memory(child.pid) < 1 << 30


def test_descriptors_show_sockets_by_inode() -> None:
    """Each open descriptor once, by number; of several for one socket, the lowest."""
    with listen() as listener, start(listener, "none", 77) as server:
        inode = os.fstat(listener.fileno()).st_ino
        shown = processes.descriptors(server.pid)
        assert [fd for fd, _ in shown] == sorted({fd for fd, _ in shown})
        assert (77, f"socket:[{inode}]") in shown
        leading = [fd for fd, target in shown if target == f"socket:[{inode}]"]
        assert len(leading) == 2  # the inherited one and the duplicate at 77
        assert processes.socket_descriptors(server.pid) == {inode: min(leading)}


def test_nothing_is_left_open_by_looking() -> None:
    """Looking costs no descriptor, and a look at oneself does not show the look."""
    with socket.socket() as sock:
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(3):
            assert sock.fileno() in dict(processes.descriptors(os.getpid()))
        assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_process_that_is_gone_is_a_lookup_error() -> None:
    """Except for `alive` and `tree`, which have an answer."""
    assert not processes.alive(GONE)
    assert processes.tree(GONE) == []
    for question in (
        processes.state,
        processes.command,
        processes.uid,
        processes.memory,
        processes.descriptors,
        processes.socket_descriptors,
        lambda pid: processes.catches(pid, signal.SIGTERM),
    ):
        with pytest.raises(ProcessLookupError, match=f"can't look into pid {GONE}: no such process"):
            question(GONE)
