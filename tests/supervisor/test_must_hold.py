"""What must hold under circus must hold under supervisord: the same tests, with a supervisord for the circusd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e import test_broken_deploys, test_flat, test_kills, test_reload
from tests.e2e.rehearsal import all_ready, shape
from tests.support.supervisord import Supervisord

Supervisords = Callable[..., Supervisord]
SOAK = (pytest.mark.soak, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    ("program", "numprocesses", "times", "seconds"),
    [
        pytest.param("uvicorn", 2, 1, 1.0, id="uvicorn-2"),
        pytest.param("gthread", 1, 1, 1.0, id="gthread-1", marks=SOAK),
        pytest.param("uvicorn", 2, 20, 2.0, id="uvicorn-2-soak", marks=SOAK),
        pytest.param("uvicorn", 1, 20, 2.0, id="uvicorn-1-soak", marks=SOAK),
        pytest.param("gthread", 2, 20, 2.0, id="gthread-2-soak", marks=SOAK),
        pytest.param("plain", 2, 20, 1.0, id="plain-2-soak", marks=SOAK),
    ],
)
def test_no_new_connection_is_lost_or_late_across_reloads(
    supervisord: Supervisords, program: str, numprocesses: int, times: int, seconds: float
) -> None:
    """At 200 new connections/s all are answered, none 250 ms later than at rest, and everything is as before."""
    test_reload.test_no_new_connection_is_lost_or_late_across_reloads(
        supervisord, program, numprocesses, times, seconds
    )


@pytest.mark.parametrize(
    ("program", "numprocesses", "times", "seconds"),
    [
        pytest.param("uvicorn", 1, 2, 0.0, id="uvicorn-1"),
        pytest.param("uvicorn", 2, 20, 2.0, id="uvicorn-2-soak", marks=SOAK),
        pytest.param("gthread", 2, 20, 2.0, id="gthread-2-soak", marks=SOAK),
    ],
)
def test_kept_connections_and_running_requests_survive_reloads(
    supervisord: Supervisords, program: str, numprocesses: int, times: int, seconds: float
) -> None:
    """Keep-alive clients that retry as HTTP clients do, and 1 s requests in flight, lose nothing."""
    test_reload.test_kept_connections_and_running_requests_survive_reloads(
        supervisord, program, numprocesses, times, seconds
    )


def test_no_datagram_is_lost_across_reloads(supervisord: Supervisords) -> None:
    """A UDP socket keeps its queue: each datagram is answered, by the old process or by the new one."""
    test_reload.test_no_datagram_is_lost_across_reloads(supervisord, 1)


def test_old_ones_serve_on_when_new_one_fails(supervisord: Supervisords) -> None:
    """0 failed requests, the same pids, an exit status and a reason, for three ways to be broken; then a good one."""
    stage: Any = supervisord("uvicorn", numprocesses=2, watcher={"sockshare.ready_timeout": "3"})
    all_ready(stage)
    before = shape(stage)
    for fault, statuses, said in (
        ("exit_at_import", {5}, "cannot import the database driver"),
        ("hang_at_import", {6}, ""),
        ("ready_then_exit", {5}, "cannot go on"),
    ):
        test_broken_deploys.test_old_ones_serve_on_when_new_one_fails(stage, before, fault, statuses, said)
    test_broken_deploys.test_good_version_takes_over_after_broken_ones(stage)


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=SOAK, id="soak")])
def test_nothing_fails_when_broker_is_killed(supervisord: Supervisords, kills: int) -> None:
    """SIGKILL in the middle of reloads: 0 failed requests, exit 0 or 5, and what the status says is so."""
    test_kills.test_nothing_fails_when_broker_is_killed(supervisord, kills)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=SOAK, id="soak")])
def test_broker_is_back_at_once_when_killed_at_rest(supervisord: Supervisords, kills: int) -> None:
    """Each death costs the traffic nothing, and the next one runs within 100 ms (150 here, with the polling)."""
    test_kills.test_broker_is_back_at_once_when_killed_at_rest(supervisord, kills)


@pytest.mark.soak
def test_waiting_command_is_answered_after_broker_restarts(supervisord: Supervisords) -> None:
    """A client that waits for an answer of a broker that is killed gets it from the next one."""
    test_kills.test_waiting_command_is_answered_after_broker_restarts(supervisord)


@pytest.mark.soak
def test_old_one_serves_on_when_command_is_interrupted(supervisord: Supervisords) -> None:
    """Ctrl-C before the switch rolls back: same pids, no second generation, not exit 0."""
    test_kills.test_old_one_serves_on_when_command_is_interrupted(supervisord, "ready")


@pytest.mark.parametrize(
    ("times", "growth"), [pytest.param(100, 2048, marks=(pytest.mark.soak, pytest.mark.timeout(900)))]
)
def test_descriptors_and_memory_are_flat_over_reloads(supervisord: Supervisords, times: int, growth: int) -> None:
    """The same descriptors, and at most *growth* KiB more, in supervisord and in the broker."""
    test_flat.test_descriptors_and_memory_are_flat_over_reloads(supervisord, times, growth)
