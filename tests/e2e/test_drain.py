"""Servers that would die of their stop signal are drained from outside, and no request is lost."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.rehearsal import (
    BETWEEN,
    QUIET,
    all_ready,
    assert_replaced,
    assert_shape,
    loaded,
    measure,
    reload_often,
    shape,
)
from tests.support.circusd import Circusd, wait_until
from tests.support.load import Result, assert_no_later, assert_none_failed

Circusds = Callable[..., Circusd]
SOAK = (pytest.mark.soak, pytest.mark.timeout(900))
SHORT = {"sockshare.ready_hold": "0.2"}
#: Requests of a second each, a second; and in 20 hand-overs, so that there are over 900 of them.
SLOW = {"threaded": 10, "flask": 10, "node": 10, "waitress": 2}
MORE_SLOW, MANY = 25, 900


@pytest.mark.parametrize(
    ("program", "times", "clients"),
    [
        *(pytest.param(program, 2, 2, id=program) for program in SLOW),
        *(pytest.param(program, 20, 4, id=f"{program}-soak", marks=SOAK) for program in SLOW),
    ],
)
def test_no_request_is_lost_when_a_server_without_a_handler_is_replaced(
    circusd: Circusds, program: str, times: int, clients: int
) -> None:
    """0 of the 1 s requests in flight, 0 of those of keep-alive clients at 100 requests/s each, who retry once."""
    # waitress can't be held off its listener, as one loop does everything; it drains itself on SIGINT.
    stage = circusd(program, watcher={**SHORT, "stop_signal": "SIGINT" if program == "waitress" else ""})
    all_ready(stage)
    before = shape(stage)
    slow, at_least = (MORE_SLOW, MANY) if times >= 20 else (SLOW[program], times * 2)
    with loaded(stage, f"slow:{slow}", f"keepalive:{clients}x100", "fresh:20") as load:
        measure(QUIET / 4)
        began = reload_often(stage, load, times)
        result = load.stop()
    for kind in ("slow", "keepalive", "fresh"):
        assert_none_failed(result.of(kind), since=began, at_least=at_least if kind == "slow" else times * 2)
    if program != "waitress":  # which lets its connections wait for its requests before it closes them
        assert_no_later(result.between(began), result.between(0, began), since=began)
    if program != "flask":  # whose requests leave an epoll each to the garbage collector
        assert_shape(stage, before)
    report(program, times, clients, result)


def report(program: str, times: int, clients: int, result: Result) -> None:
    """The figures of docs/draining.md; shown by `pytest -s`."""
    kept = result.of("keepalive")
    closings, met = times * clients, sum(record.attempts > 1 for record in kept.records)
    print(
        f"\n{program}: {times} hand-overs, {len(result)} requests, {len(result.of('slow'))} of them slow, "
        f"{len(result.failures)} failed; {met} of {closings} closings met a request, worst fast "
        f"{result.of('keepalive', 'fresh').worst * 1000:.0f} ms"
    )


@pytest.mark.parametrize(
    ("program", "options", "how"),
    [
        pytest.param("blocking", {"plugin": {"web.blocking": "true"}}, "from outside", id="blocking-accept"),
        pytest.param("sync", {}, "gunicorn drains itself on TERM", id="gunicorn-sync"),
    ],
)
@pytest.mark.parametrize("times", [1, pytest.param(20, marks=SOAK, id="soak")])
def test_no_request_is_lost_by_servers_without_an_event_registration(
    circusd: Circusds, program: str, options: dict[str, dict[str, str]], how: str, times: int
) -> None:
    """A blocking accept() and gunicorn's sync worker; `status` says why they cannot be suspended as others are."""
    stage = circusd(program, watcher=SHORT, **options)
    all_ready(stage)
    (holder,) = stage.status()["sockets"][0]["holders"]
    assert (holder["registered"], holder["kept_by"]) == (False, None)
    assert holder["not_kept"].startswith("cannot be suspended: it has no event registration")
    with loaded(stage, "fresh:50") as load:
        measure(QUIET / 4)
        for _ in range(times):
            before = stage.pids()
            reload = stage.reload()
            assert_replaced(stage, before, reload)
            assert any(how in str(step["reason"]) for step in reload.steps if step["step"] == "drain"), reload
            measure(BETWEEN)
        assert_none_failed(load.stop(), since=reload.began, at_least=50)


def test_client_of_a_server_that_ignores_its_end_does_not_wait_for_that(circusd: Circusds) -> None:
    """As hypercorn: it reads no more, and closes the connection 5 s later; clients are shown the end before."""
    stage = circusd("lingering", watcher={**SHORT, "sockshare.drain": "observe"})
    all_ready(stage)
    with loaded(stage, "keepalive:4x100") as load:
        measure(QUIET / 4)
        began = reload_often(stage, load, 1)
        result = load.stop()
    assert_none_failed(result, since=began, at_least=50)
    assert_no_later(result.between(began), result.between(0, began), since=began)


def test_status_says_why_a_server_with_one_loop_cannot_be_held(circusd: Circusds) -> None:
    """Which is seen while it waits for its connections too."""
    stage = circusd("waitress")
    with socket.create_connection(("127.0.0.1", stage.port), 5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert client.recv(65536)

        def is_said() -> bool:
            (holder,) = stage.status()["sockets"][0]["holders"]
            return str(holder["not_kept"]).endswith(
                "; the thread that waits serves connections too and can't be held, so let its program drain itself on"
                " its stop signal"
            )

        wait_until(is_said, 10, "status says so", 0.1)


def test_reload_says_what_is_left_and_ends_when_it_is_not_drained_in_time(circusd: Circusds) -> None:
    """A request that never ends is waited for as long as `drain_timeout` says, and a line a second tells of it."""
    stage = circusd("threaded", watcher={**SHORT, "sockshare.drain_timeout": "1.5"})
    all_ready(stage)
    with socket.create_connection(("127.0.0.1", stage.port), 5) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        reload = stage.reload()
    assert reload.status == 0, reload
    said = [step["reason"] for step in reload.steps if step["step"] == "drain"]
    assert "1 connection left, 0 idle, 1 busy" in said
    assert said[-1] == "given up after 1.5 s"


@contextmanager
def descriptors(number: int) -> Iterator[None]:
    """At least so many may be open, here and in what is started."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(number, before[0]), max(number, before[1])))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def cpu_seconds(pid: int) -> float:
    """What a process has used of a processor so far, its threads that have ended too (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_draining_of_10000_connections_takes_less_than_a_fifth_of_a_processor(circusd: Circusds, busy: bool) -> None:
    """Whether they all wait for an answer, which none gets, or all for a request: then they are ended."""
    with descriptors(15000):
        stage = circusd("node", watcher={**SHORT, "sockshare.drain_timeout": "8"})
        all_ready(stage)
        broker = stage.broker()
        clients = []
        try:
            for _ in range(10000):
                clients.append(socket.create_connection(("127.0.0.1", stage.port), 5))
                if busy:
                    clients[-1].send(b"GET / HTTP/1.1\r\n")  # the rest never comes
            with stage.command("reload", "web", "--json") as command:
                assert command.stdout is not None
                used, began, steps = cpu_seconds(broker), time.monotonic(), []
                for line in command.stdout:
                    steps.append(json.loads(line))
                    if steps[-1]["step"] == "switch":
                        used, began = cpu_seconds(broker), time.monotonic()
                    if steps[-1]["step"] == "stop":
                        used, began = cpu_seconds(broker) - used, time.monotonic() - began
                        break
                command.communicate(timeout=30)
        finally:
            for client in clients:
                client.close()
    said = [step["reason"] for step in steps if step["step"] == "drain"]
    kind = "busy" if busy else "idle"
    print(f"\n10,000 {kind} connections: {used / began:.1%} of a processor for {began:.1f} s: {said}")
    assert said[-1] == ("given up after 8 s" if busy else "no connection left"), steps
    if busy:
        assert any("10000 busy" in line for line in said), said
    assert used / began < 0.2, f"{used:.2f} s of processor in {began:.2f} s"
