"""Gates between real processes: who is let through is the broker's decision alone, in whatever state the process is."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockshare.kernel import processes
from sockshare.kernel.gate import Gate, is_gate
from tests.support.registered import APP, ROOT, Server, ask, finish, listen, tally, until

GATED = Path(APP).with_name("gated.py")
HOW = ("epoll", "poll", "asyncio")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen() as sock:
        yield sock


@pytest.fixture(autouse=True)
def _nothing_leaks(listener: socket.socket) -> Iterator[None]:
    Gate().sweep(listener.fileno())  # whatever is made once for the whole process
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


class Gated(Server):
    """A server of `gated.py`, with its gate."""

    def __init__(self, listener: socket.socket, how: str) -> None:
        self.gate = Gate()
        os.set_inheritable(self.gate.fileno(), True)
        number = listener.fileno()
        os.set_inheritable(number, True)
        self.listener = listener
        self.process = subprocess.Popen(
            [sys.executable, str(GATED), how, str(self.gate.fileno()), str(number)],
            pass_fds=[self.gate.fileno(), number],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
        )
        self.pid = self.process.pid

    def __enter__(self) -> Gated:
        assert self.line() == "ready"
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        super().__exit__(*exception)
        self.gate.close()

    @property
    def accepted(self) -> int:
        """How many connections it has accepted."""
        return int(self.tell("accepted"))

    def stop(self) -> None:
        """SIGSTOP it, and see it stopped."""
        self.process.send_signal(signal.SIGSTOP)
        until(lambda: processes.state(self.pid) == "T", "it is stopped")


@contextmanager
def connected(listener: socket.socket) -> Iterator[socket.socket]:
    """A connection in the queue of *listener*."""
    with socket.create_connection(listener.getsockname()[:2], timeout=10) as client:
        yield client


@contextmanager
def armed_by_another(gate: Gate, listener: socket.socket, number: int) -> Iterator[None]:
    """The gate was armed under *number* by a process that is dead."""
    pid = os.fork()
    if pid == 0:
        epoll = select.epoll.fromfd(fcntl.fcntl(gate.fileno(), fcntl.F_DUPFD, 300))
        os.dup2(listener.fileno(), number)
        epoll.register(number, select.EPOLLIN)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    yield


def test_gate_lets_through_only_while_it_is_armed(listener: socket.socket) -> None:
    """Readable and yes while the socket is in it and something waits; both idempotent; not readable otherwise."""
    with Gate() as gate, connected(listener):
        assert (gate.poll(), gate.armed(), gate.disarm()) == (False, False, False)
        gate.arm(listener.fileno())
        gate.arm(listener.fileno())
        assert (gate.poll(), gate.armed()) == (True, True)
        assert select.select([gate], [], [], 0)[0] == [gate]
        assert (gate.disarm(), gate.disarm()) == (True, False)
        assert (gate.poll(), gate.armed()) == (False, False)
    assert gate.fileno() == -1
    gate.close()


def test_gate_lets_through_again_what_was_not_taken(listener: socket.socket) -> None:
    """Level-triggered: what was there before it was armed, and what is left after one look, is reported."""
    with Gate() as gate, connected(listener):
        for _ in range(3):
            gate.arm(listener.fileno())
            assert gate.poll()
            assert gate.poll()
            gate.disarm()
        assert not gate.poll()
        gate.arm(listener.fileno())
        listener.accept()[0].close()
        assert not gate.poll()


@pytest.mark.parametrize("how", HOW)
def test_all_requests_go_to_the_one_whose_gate_is_armed(listener: socket.socket, how: str) -> None:
    """Moved to and fro by the broker alone, whatever call the processes wait in."""
    with Gated(listener, how) as one, Gated(listener, how) as other:
        for holder, former in [(one, other), (other, one)] * 3:
            former.gate.disarm()
            holder.gate.arm(listener.fileno())
            assert tally(listener, 20) == {holder.pid: 20}
        assert (one.accepted, other.accepted) == (60, 60)


def test_stopped_holder_takes_nothing_more_when_its_gate_was_disarmed(listener: socket.socket) -> None:
    """50 times stopped in its wait, with a request queued: the other one serves it, the one that goes on does not."""
    with Gated(listener, "epoll") as one, Gated(listener, "epoll") as other:
        for turn in range(50):
            holder, next_one = (one, other) if turn % 2 == 0 else (other, one)
            holder.gate.arm(listener.fileno())
            assert ask(listener) == holder.pid
            holder.stop()
            with connected(listener) as client:
                holder.gate.disarm()
                next_one.gate.arm(listener.fileno())
                holder.process.send_signal(signal.SIGCONT)
                assert finish(client) == next_one.pid
        assert (one.accepted, other.accepted) == (50, 50)


def test_queued_connections_are_served_by_the_next_one_when_holder_is_killed(listener: socket.socket) -> None:
    """Nothing that the dead holder had not accepted is lost."""
    with Gated(listener, "epoll") as one, Gated(listener, "epoll") as other:
        one.gate.arm(listener.fileno())
        assert ask(listener) == one.pid
        one.stop()
        clients = [socket.create_connection(listener.getsockname()[:2], timeout=10) for _ in range(20)]
        one.process.kill()
        one.process.wait()
        other.gate.arm(listener.fileno())
        for client in clients:
            with client:
                assert finish(client) == other.pid


def test_holder_serves_on_when_the_one_who_armed_its_gate_is_dead(listener: socket.socket) -> None:
    """The registration needs no broker; the next one sweeps it from under whatever number it was armed."""
    with Gated(listener, "epoll") as server:
        for number in (listener.fileno(), 200, server.gate.fileno(), 0):
            with armed_by_another(server.gate, listener, number):
                assert ask(listener) == server.pid
                assert server.gate.armed()
                assert not server.gate.disarm()  # it knows nothing of it
                assert server.gate.sweep(listener.fileno()) == 1
                assert not server.gate.armed()
                with connected(listener) as client:
                    client.settimeout(0.05)
                    with pytest.raises(TimeoutError):
                        client.recv(1)
                    server.gate.arm(listener.fileno())
                    client.settimeout(10)
                    assert finish(client) == server.pid
                server.gate.disarm()


def test_every_entry_of_the_socket_is_gone_when_gate_is_swept(listener: socket.socket) -> None:
    """Whoever made how many; an entry of another socket is let be, and is told by `armed`."""
    with Gate() as gate, listen() as foreign:
        numbers = [os.dup(listener.fileno()) for _ in range(5)]
        for number in (*numbers, foreign.fileno()):
            select.epoll.fromfd(os.dup(gate.fileno())).register(number, select.EPOLLIN)
        for number in numbers:
            os.close(number)  # the entries stay: the file is open elsewhere (epoll(7), Q6)
        gate.arm(listener.fileno())
        assert gate.sweep(listener.fileno()) == 6
        assert gate.armed()
        assert gate.sweep(foreign.fileno()) == 1
        assert not gate.armed()
        assert gate.sweep(listener.fileno()) == 0
        gate.arm(listener.fileno())
        assert gate.armed()


def test_gate_can_be_armed_whatever_its_process_did_to_the_entry(listener: socket.socket) -> None:
    """An entry of the same number with other events is made ours; one that was taken out is no error."""
    with Gate() as gate, connected(listener):
        theirs = select.epoll.fromfd(os.dup(gate.fileno()))
        theirs.register(listener.fileno(), 0)
        gate.arm(listener.fileno())
        assert gate.poll()
        theirs.unregister(listener.fileno())
        assert gate.disarm() is False
        theirs.close()


def test_gate_watches_one_socket_when_armed_with_another(listener: socket.socket) -> None:
    """The former one is out of it."""
    with Gate() as gate, listen() as another, connected(listener):
        gate.arm(listener.fileno())
        gate.arm(another.fileno())
        assert not gate.poll()
        with connected(another):
            assert gate.poll()


def test_disarming_is_an_error_when_the_socket_was_closed(listener: socket.socket) -> None:
    """The entry lives on in the file that others hold: that is not passed over."""
    with Gate() as gate:
        number = os.dup(listener.fileno())
        gate.arm(number)
        os.close(number)
        with pytest.raises(OSError, match="Bad file descriptor"):
            gate.disarm()
        assert gate.armed()
        assert gate.sweep(listener.fileno()) == 1


def test_gate_is_told_from_any_other_epoll_of_a_process(listener: socket.socket) -> None:
    """The same open file under another number in another process is the gate, its own epolls are not."""
    with Gated(listener, "epoll") as server, Gate() as other:
        found = [fd for fd, target in processes.descriptors(server.pid) if target == "anon_inode:[eventpoll]"]
        assert len(found) == 2
        assert [server.gate.same(server.pid, fd) for fd in sorted(found)].count(True) == 1
        assert server.gate.same(os.getpid(), server.gate.fileno())
        assert not any(other.same(server.pid, fd) for fd in found)
        assert not server.gate.same(server.pid, 999)
        server.process.kill()
        server.process.wait()
        assert not server.gate.same(server.pid, found[0])


def test_only_an_epoll_becomes_a_gate(listener: socket.socket) -> None:
    """Anything else is refused, and stays the caller's."""
    reading, writing = os.pipe()
    try:
        for fd in (reading, writing, listener.fileno()):
            assert not is_gate(fd)
            with pytest.raises(OSError, match="it is no epoll"):
                Gate(fd)
            os.fstat(fd)
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(FileNotFoundError):
        is_gate(reading)
    with Gate() as gate:
        assert not os.get_inheritable(gate.fileno())
        with Gate(os.dup(gate.fileno())) as taken_over:
            assert is_gate(taken_over.fileno())
            assert taken_over.same(os.getpid(), gate.fileno())
