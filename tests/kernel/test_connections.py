"""What the kernel says of real connections."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sockshare.kernel import connections, listeners, processes
from sockshare.kernel.connections import CLOSE_WAIT, ESTABLISHED
from tests.support.registered import inode, listen, until


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with listen(request.param, backlog=7) as sock:
        sock.setblocking(True)
        yield sock


def port(sock: socket.socket) -> int:
    number: int = sock.getsockname()[1]
    return number


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname()[:2], timeout=10)


def test_only_the_listeners_side_is_listed(listener: socket.socket) -> None:
    """A connection has one end on the port: the accepted one, with both addresses and the socket's inode."""
    with connect(listener) as client:
        accepted, _ = listener.accept()
        with accepted:
            (only,) = connections.established(listener.family, port(listener))
            assert only.local == listener.getsockname()[:2]
            assert only.remote == client.getsockname()[:2]
            assert (only.state, only.inode) == (ESTABLISHED, inode(accepted))
            other = socket.AF_INET if listener.family == socket.AF_INET6 else socket.AF_INET6
            assert connections.established(other, port(listener)) == []
    assert connections.established(listener.family, port(listener)) == []


def test_waiting_connections_have_no_inode_and_make_the_queue(listener: socket.socket) -> None:
    """Until a program accepts it, a connection counts in the queue."""
    with connect(listener), connect(listener):
        assert [one.inode for one in connections.established(listener.family, port(listener))] == [0, 0]
        assert connections.listener_queue(listener.family, inode(listener), port(listener)) == (2, 7)
        assert connections.listener_queue(listener.family, inode(listener)) == listeners.queue(listener)
        listener.accept()[0].close()
        assert connections.listener_queue(listener.family, inode(listener), port(listener)) == (1, 7)


def test_queue_of_a_unix_listener() -> None:
    """AF_UNIX listeners are asked by their inode."""
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind("")
        with pytest.raises(LookupError, match="no such listener"):
            connections.listener_queue(socket.AF_UNIX, inode(listening))
        listening.listen(3)
        client.connect(listening.getsockname())
        assert connections.listener_queue(socket.AF_UNIX, inode(listening)) == (1, 3)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_an_unknown_listener_is_a_lookup_error(family: int) -> None:
    """The message has the inode."""
    with pytest.raises(LookupError, match="can't read the queue of socket 3: no such listener"):
        connections.listener_queue(family, 3)


def test_counters_follow_what_was_sent_and_read(listener: socket.socket) -> None:
    """Queues and TCP_INFO are the accepted side's, as getsockopt(2) has them."""
    with connect(listener) as client:
        accepted, _ = listener.accept()
        with accepted:

            def now() -> connections.Connection:
                (only,) = connections.established(listener.family, port(listener))
                return only

            client.sendall(b"x" * 1000)
            until(lambda: now().receive_queue == 1000, "the data has arrived")
            accepted.recv(1000)
            accepted.sendall(b"y" * 500)
            assert client.recv(500, socket.MSG_WAITALL) == b"y" * 500
            until(lambda: now().send_queue == 0, "the answer is acknowledged")
            seen = now()
            assert seen.receive_queue == 0
            info = seen.info
            assert info is not None
            assert (info.bytes_received, info.bytes_sent, info.bytes_acked) == (1000, 500, 500)
            assert (info.data_segs_in, info.data_segs_out, info.unacked, info.notsent) == (1, 1, 0, 0)
            assert info.segs_in > info.data_segs_in
            assert info.segs_out >= info.data_segs_out
            assert info.smss == accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            assert 0 <= info.last_data_received < 10_000
            assert 0 <= info.last_data_sent < 10_000
            assert 0 <= info.last_ack_received < 10_000


def test_what_could_not_be_sent_is_counted(listener: socket.socket) -> None:
    """A client that does not read: written bytes are notsent, and in the send queue."""
    with connect(listener):
        accepted, _ = listener.accept()
        with accepted:
            accepted.setblocking(False)
            written = 0
            try:
                while True:
                    written += accepted.send(b"z" * 65536)
            except BlockingIOError:
                pass
            (only,) = connections.established(listener.family, port(listener))
            assert only.info is not None
            assert 0 < only.info.notsent <= only.send_queue <= written


def test_ages_are_milliseconds(listener: socket.socket) -> None:
    """Last received is younger than last sent once the client has spoken later."""
    with connect(listener) as client:
        accepted, _ = listener.accept()
        with accepted:

            def info() -> connections.TcpInfo:
                (only,) = connections.established(listener.family, port(listener))
                assert only.info is not None
                return only.info

            accepted.sendall(b"x")
            until(lambda: info().last_data_sent >= 50, "50 ms have passed")
            client.sendall(b"y")
            until(lambda: info().bytes_received == 1, "it has arrived")
            after = info()
            assert after.last_data_received < after.last_data_sent
            assert 50 <= after.last_data_sent < 10_000


def test_a_half_closed_connection_is_listed(listener: socket.socket) -> None:
    """A client that has shut its side may wait for an answer; one that the server has shut is done."""
    with connect(listener) as client:
        accepted, _ = listener.accept()
        with accepted:
            client.shutdown(socket.SHUT_WR)

            def states() -> list[int]:
                return [one.state for one in connections.established(listener.family, port(listener))]

            until(lambda: states() == [CLOSE_WAIT], "the end has arrived")
            assert connections.established(listener.family, port(listener), states=[ESTABLISHED]) == []
            accepted.shutdown(socket.SHUT_WR)
            assert states() == []


def test_another_address_of_the_same_port_is_left_out() -> None:
    """Two listeners may have one port on two addresses; a wildcard means any."""
    with listen("127.0.0.1") as one, socket.socket() as two:
        two.bind(("127.0.0.2", port(one)))
        two.listen()
        with connect(one) as client, connect(two):
            (only,) = connections.established(socket.AF_INET, port(one), "127.0.0.1")
            assert only.remote == client.getsockname()
            assert len(connections.established(socket.AF_INET, port(one), "127.0.0.2")) == 1
            assert len(connections.established(socket.AF_INET, port(one), "0.0.0.0")) == 2
            assert connections.established(socket.AF_INET, port(one), "127.0.0.3") == []


def test_ipv4_client_of_an_ipv6_listener_is_an_ipv6_connection() -> None:
    """A dual-stack listener's connections are all of its family."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        with socket.create_connection(("127.0.0.1", port(listener))) as client:
            listener.accept()[0].close()
            client.close()
        with socket.create_connection(("127.0.0.1", port(listener))) as client:
            accepted, _ = listener.accept()
            with accepted:
                found = connections.established(socket.AF_INET6, port(listener), "::", states=[ESTABLISHED])
                assert [one.remote for one in found] == [("::ffff:127.0.0.1", client.getsockname()[1])]


def test_connections_belong_to_who_has_them_open(listener: socket.socket) -> None:
    """By the inode in /proc/PID/fd: one that two processes share is listed with both, a stranger's with none."""
    with connect(listener), connect(listener):
        first, second = listener.accept()[0], listener.accept()[0]
        with first, second:
            child = subprocess.Popen(
                [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
                pass_fds=[first.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            with child:
                try:
                    assert child.stdout is not None
                    child.stdout.readline()
                    found = connections.established(listener.family, port(listener))
                    gone = 2**22 + 1
                    owned = connections.connections_of([os.getpid(), child.pid, gone], found)
                finally:
                    child.kill()
            assert {one.inode for one in owned[os.getpid()]} == {inode(first), inode(second)}
            assert [one.inode for one in owned[child.pid]] == [inode(first)]
            assert owned[gone] == []


def test_many_connections_come_in_several_packets_and_no_descriptor_stays() -> None:
    """A long answer is read to its end."""
    with listen(backlog=300) as listener:
        before = processes.descriptors(os.getpid())
        clients = [connect(listener) for _ in range(250)]
        try:
            assert len(connections.established(socket.AF_INET, port(listener))) == 250
        finally:
            for client in clients:
                client.close()
        assert processes.descriptors(os.getpid()) == before


def test_a_refused_question_is_an_error() -> None:
    """There is no second source: the kernel's errno comes through."""
    with pytest.raises(OSError, match=r"can't list sockets: .* \(sock_diag\)"):
        connections.established(99, 80)


@pytest.mark.parametrize("answer", [b"yes", b""], ids=["answered", "cut"])
def test_last_word_on_a_connection_tells_what_was_sent_and_who_closed_first(
    listener: socket.socket, answer: bytes
) -> None:
    """The counts survive the close in `Ends`; TIME_WAIT, which `find` shows, is where the server was first."""
    ends = connections.Ends([port(listener)])
    try:
        with connect(listener) as client:
            accepted, _ = listener.accept()
            client.sendall(b"question")
            assert accepted.recv(100) == b"question"
            (known,) = connections.established(listener.family, port(listener))
            accepted.sendall(answer)
            accepted.close()
            assert client.recv(100) == answer
        (last,) = told(ends)  # not of the client's side: it has another port
        assert last.info is not None
        assert (last.cookie, last.state) == (known.cookie, connections.CLOSE)
        assert last.info.bytes_sent == len(answer)
        assert 0 <= last.info.bytes_received - len(b"question") <= 1  # the client's end of file counts as one
        now = connections.find(listener.family, known)
        assert now is not None
        assert (now.cookie, now.state) == (known.cookie, connections.TIME_WAIT)
    finally:
        ends.close()


def test_hundreds_of_ends_at_once_are_heard() -> None:
    """A process that dies ends all that it has, between two looks."""
    with listen(backlog=1000) as listener:
        ends = connections.Ends([port(listener)])
        try:
            pairs = [(connect(listener), listener.accept()[0]) for _ in range(300)]
            for client, accepted in pairs:
                client.close()
                accepted.close()
            heard = 0

            def all_heard() -> bool:
                nonlocal heard
                heard += len(ends.read())
                return heard == 300

            until(lambda: connections.established(socket.AF_INET, port(listener)) == [], "they are gone")
            until(all_heard, "all are told")
        finally:
            ends.close()


def test_nothing_is_left_of_a_connection_whose_client_closed_first(listener: socket.socket) -> None:
    """So it can be told from one that the server has cut."""
    ends = connections.Ends([port(listener)])
    try:
        client = connect(listener)
        accepted, _ = listener.accept()
        (known,) = connections.established(listener.family, port(listener))
        now = connections.find(listener.family, known)
        assert now is not None
        assert (now.cookie, now.state, now.inode) == (known.cookie, ESTABLISHED, inode(accepted))
        client.close()
        accepted.close()
        assert [last.cookie for last in told(ends)] == [known.cookie]
        assert connections.find(listener.family, known) is None
    finally:
        ends.close()


def told(ends: connections.Ends) -> list[connections.Connection]:
    """What `Ends` says next: the kernel says it a moment later."""
    found: list[connections.Connection] = []

    def has_told() -> bool:
        found.extend(ends.read())
        return bool(found)

    until(has_told, "an end is told")
    return found
