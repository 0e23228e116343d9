"""Servers that have no event registration: what they wait by is seen, and the thread that waits can be held."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockshare.kernel import listeners, parking, processes, waits
from sockshare.kernel.parking import Parking
from tests.support.registered import APP, ROOT, Server, ask, inode, listen, tally, until

WAITING = Path(APP).with_name("waiting.py")
CALLS = ("poll", "poll-timeout", "select", "accept", "fork", "piped")
HOLD = """
import sys
from sockshare.kernel.parking import Parking
held = Parking(int(sys.argv[1]), {int(sys.argv[2]): int(sys.argv[3])})
held.wait(10)
print(held.held, flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="not known how on this machine")


class Waiting(Server):
    """A server of `waiting.py`, seen to wait."""

    def __init__(self, listener: socket.socket, call: str) -> None:
        super().__init__(listener, [sys.executable, str(WAITING), call, str(listener.fileno())])
        self.call = call

    def __enter__(self) -> Waiting:
        until(self.waits, f"{self.call} is seen")
        return self

    def waits(self) -> bool:
        """Whether all its processes wait."""
        members = processes.tree(self.pid)
        expected = 2 if self.call == "fork" else 1
        return len(members) == expected and all(waits.waits(pid, [inode(self.listener)]) for pid in members)


@contextmanager
def held(server: Waiting, count: int = 1) -> Iterator[Parking]:
    """So many threads of *server* are held inside the block."""
    parked = Parking(server.pid, server.sockets)
    try:
        until(lambda: parked.held == count, f"{count} threads are held")
        yield parked
    finally:
        parked.release()


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def listener(call: str) -> Iterator[socket.socket]:
    with listen() as sock:
        sock.setblocking(call == "accept")
        yield sock


def queued(listener: socket.socket) -> int:
    """How many connections nobody has accepted."""
    queue = listeners.queue(listener)
    return 0 if queue is None else queue.length


def test_all_requests_go_to_the_other_while_one_is_held(listener: socket.socket, call: str) -> None:
    """The held one hears of nothing, in whatever call it waits; let go, it serves again."""
    count = 2 if call == "fork" else 1
    with Waiting(listener, call) as one, Waiting(listener, call) as other:
        for quiet, busy in ((one, other), (other, one)):
            with held(quiet, count):
                assert set(tally(listener, 30)) <= set(processes.tree(busy.pid))
            with held(busy, count):
                assert set(tally(listener, 30)) <= set(processes.tree(quiet.pid))


def test_connection_that_waits_is_taken_once_it_is_let_go(listener: socket.socket, call: str) -> None:
    """Nothing is lost in between, and the call that was cut short hears of it."""
    with Waiting(listener, call) as server:
        answers: list[int] = []
        client = threading.Thread(target=lambda: answers.append(ask(listener)))
        with held(server, 2 if call == "fork" else 1):
            client.start()
            until(lambda: queued(listener) == 1, "it waits")
            assert not answers
        client.join()
        assert set(answers) <= set(processes.tree(server.pid))


@pytest.mark.parametrize("call", ["poll", "accept"])
def test_no_request_is_lost_while_two_are_held_in_turn(listener: socket.socket, call: str) -> None:
    """20 times each, under one request after the other; one that is about to accept is not held."""
    done = threading.Event()
    answers: list[int] = []

    def ask_on() -> None:
        while not done.is_set():
            answers.append(ask(listener))

    with Waiting(listener, call) as one, Waiting(listener, call) as other:
        client = threading.Thread(target=ask_on)
        client.start()
        try:
            for _ in range(20):
                for quiet in (one, other):
                    with held(quiet):
                        before = len(answers)
                        until(lambda before=before: len(answers) > before + 1, "the other one answers")  # type: ignore[misc]
        finally:
            done.set()
            client.join()
        assert set(answers) == {one.pid, other.pid}


@contextmanager
def held_by_another(server: Waiting) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own holds *server*: a parent that is the tracer too is not told twice of an end."""
    arguments = [str(server.pid), str(inode(server.listener)), str(server.listener.fileno())]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[server.listener.fileno()],
        cwd=ROOT,
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"1\n"
            assert processes.state(server.pid) == "t"
            yield holder
        finally:
            holder.kill()


@pytest.mark.parametrize("call", ["poll", "accept"])
def test_held_thread_goes_on_when_who_holds_it_is_killed(listener: socket.socket, call: str) -> None:
    """SIGKILL at whatever moment leaves nothing: the kernel lets go, and the server serves."""
    with Waiting(listener, call) as server, held_by_another(server) as holder:
        holder.kill()
        assert ask(listener) == server.pid


@pytest.mark.parametrize("call", ["poll", "accept", "piped", "single"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_held_process_meets_its_signal_at_once(listener: socket.socket, call: str, number: signal.Signals) -> None:
    """It is let go for it, accepts nothing more, and its parent hears of its end while it is still to be held."""
    with (
        Waiting(listener, call) as server,
        held_by_another(server),
        socket.create_connection(listener.getsockname()[:2], timeout=5),
    ):
        until(lambda: queued(listener) == 1, "it waits")
        server.process.send_signal(number)
        assert server.process.wait(5) == -number
        assert queued(listener) == 1, "it was accepted by a process that was to end"


@pytest.mark.parametrize("call", ["accept"])
def test_death_of_a_process_reaches_its_parent_while_its_threads_are_held(listener: socket.socket, call: str) -> None:
    """Each of them ends for its tracer first, whatever that is at when they are killed."""
    program = (
        "import mmap, signal, socket, sys, threading\n"
        "memory = mmap.mmap(-1, 256 << 20)\n"  # it takes a while to die
        "memory.madvise(mmap.MADV_NOHUGEPAGE)\n"
        "memory[::4096] = bytes(len(memory) // 4096)\n"
        "sock = socket.socket(fileno=int(sys.argv[1]))\n"
        "for _ in range(5):\n"
        "    threading.Thread(target=sock.accept, daemon=True).start()\n"
        "signal.pause()\n"
    )
    for _ in range(3):
        with Server(listener, [sys.executable, "-c", program, str(listener.fileno())]) as server:
            parked = Parking(server.pid, server.sockets)
            try:
                until(lambda: parked.held == 5, "all its threads are held")  # noqa: B023
                os.kill(server.pid, signal.SIGTERM)
                assert server.process.wait(5) == -signal.SIGTERM
            finally:
                parked.release()


@pytest.mark.parametrize("call", ["piped", "loop"])
def test_thread_that_serves_connections_is_not_held(listener: socket.socket, call: str) -> None:
    """One loop for all, by its pipe or by its connections: holding it would stop them, so it serves on."""
    with (
        Waiting(listener, call) as server,
        socket.create_connection(listener.getsockname()[:2], timeout=5) as client,
    ):
        client.sendall(b"keep")
        assert client.recv(100)
        parked = Parking(server.pid, server.sockets)
        try:
            for _ in range(5):
                assert ask(listener) == server.pid
            parked.wait(0.2)
            assert parked.held == 0
            assert ask(listener) == server.pid
        finally:
            parked.release()
        assert parked.refusal == ""


@pytest.mark.parametrize("call", ["poll"])
def test_process_that_somebody_traces_is_refused(listener: socket.socket, call: str) -> None:
    """It says why, and the process is as it was."""
    with Waiting(listener, call) as server, held(server):
        second = Parking(server.pid, server.sockets)
        second.wait(5)
        second.release()
        assert (second.held, second.refusal) == (0, "Operation not permitted")


@pytest.mark.parametrize("call", ["poll"])
def test_process_that_has_died_is_nothing_to_do(listener: socket.socket, call: str) -> None:
    """It waits for nothing, and nothing is held."""
    with Waiting(listener, call) as server:
        server.process.kill()
        server.process.wait()
        parked = Parking(server.pid, server.sockets)
        parked.release()
        assert (parked.held, parked.refusal) == (0, "")
        assert waits.waiting(server.pid, [inode(listener)]) == set()


def test_request_of_the_kernel_has_the_size_that_it_writes() -> None:
    """struct user_regs_struct of x86_64 has 27 words (sys/user.h); a shorter buffer would be overrun."""
    assert parking._REGISTERS.size == 27 * 8
