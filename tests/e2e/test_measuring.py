"""The measuring itself: each kind of failure is seen as what it is, and a stall in its full length."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sockshare.cli.stage import free_port
from tests.e2e.rehearsal import measure
from tests.support.circusd import Circusd
from tests.support.load import Load, Result, assert_no_later, assert_none_failed

BODY = json.dumps({"version": "v1", "pid": 1}).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


@contextmanager
def serving(treat: Callable[[socket.socket, int], None]) -> Iterator[int]:
    """A server that treats its connections, numbered from 0, one after the other; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            number = 0
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    treat(connection, number)
                number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # close() alone does not wake accept
            thread.join()


def requests(port: int, kind: str, seconds: float = 0.3, timeout: float = 0.3) -> Result:
    """A short load."""
    with Load(port, kind, timeout=timeout) as load:
        measure(seconds)
        return load.stop()


def read_and_reset(connection: socket.socket, number: int) -> None:
    """The request is read; the connection is reset."""
    connection.recv(4096)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def answer_half(connection: socket.socket, number: int) -> None:
    """The connection ends in the middle of the answer."""
    connection.recv(4096)
    connection.sendall(ANSWER[:-3])


def close(connection: socket.socket, number: int) -> None:
    """The request is read, and that was it."""
    connection.recv(4096)


def answer_error(connection: socket.socket, number: int) -> None:
    """A 503."""
    connection.recv(4096)
    connection.sendall(ANSWER.replace(b"200 OK", b"503 No"))


def never_answer(connection: socket.socket, number: int) -> None:
    """Silence, until the client goes."""
    while connection.recv(4096):
        pass


@pytest.mark.parametrize(
    ("treat", "outcome"),
    [(read_and_reset, "reset"), (answer_half, "reset"), (answer_error, "bad_answer"), (never_answer, "timed_out")],
)
def test_failure_is_seen_as_what_it_is(treat: Callable[[socket.socket, int], None], outcome: str) -> None:
    """Every request of a server that fails in one way has that outcome."""
    with serving(treat) as port:
        result = requests(port, "fresh:20")
    assert len(result) >= 4
    assert set(result.outcomes) == {outcome}
    with pytest.raises(AssertionError, match=outcome):
        assert_none_failed(result)


def test_refusal_is_seen_when_nothing_listens() -> None:
    """A port without a listener refuses."""
    assert set(requests(free_port(), "fresh:20").outcomes) == {"refused"}


def test_kept_connection_is_retried_once_when_it_closes_before_the_answer() -> None:
    """One repetition, on a new connection; closed a second time it is a failure."""

    def every_other(connection: socket.socket, number: int) -> None:
        connection.recv(4096)
        if number % 2:
            connection.sendall(ANSWER)

    with serving(every_other) as port:
        result = requests(port, "keepalive:1x20")
    assert_none_failed(result)
    assert any(record.attempts == 2 for record in result.records)
    with serving(close) as port:
        assert set(requests(port, "keepalive:1x20").outcomes) == {"reset"}


def test_kept_connection_is_not_retried_when_the_answer_had_begun() -> None:
    """A byte of the response is an effect: the request may not be repeated."""
    with serving(answer_half) as port:
        result = requests(port, "keepalive:1x20")
    assert set(result.outcomes) == {"reset"}
    assert {record.attempts for record in result.records} == {1}


def test_stall_counts_for_every_request_that_was_due_in_it() -> None:
    """Half a second of silence at 100 requests/s is fifty late requests, the first by half a second."""

    def stall(connection: socket.socket, number: int) -> None:
        connection.recv(4096)
        if number == 10:
            time.sleep(0.5)  # this is the stall, not a way to wait for something
        connection.sendall(ANSWER)

    with serving(stall) as port:
        result = requests(port, "fresh:100", 1.0, timeout=5)
    late = [record for record in result.records if record.latency > 0.05]
    assert_none_failed(result)
    assert 40 <= len(late) <= 55, len(late)
    assert 0.45 < result.worst < 0.7
    with pytest.raises(AssertionError, match="fresh requests took over"):
        assert_no_later(result, result.between(0, result.records[9].due), later=0.25)


def test_stall_of_stock_circus_is_seen(circusd: Callable[..., Circusd]) -> None:
    """`circusctl reload` of a program with a 1 s import stalls that long: what the other tests bound at 250 ms."""
    stage = circusd("uvicorn", stock=True, numprocesses=2, import_seconds=1.0)
    with Load(stage.port, "fresh:200") as load:
        measure(1.0)
        began = time.monotonic()
        stage.deploy("v2")
        assert stage.call("reload", name="web", waiting=True)["status"] == "ok"
        measure(1.5)
        result = load.stop()
    assert len(result.failures) < 10  # it drops what it has accepted and not yet read: one or two, now and then
    assert result.between(0, began).worst < 0.3
    assert 0.9 < result.between(began).worst < 2.0
    assert {version for version, _ in result.answered_by} == {"v1", "v2"}
