"""Reloads of unmodified servers under load: nothing refused, reset, timed out or late."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.e2e.rehearsal import QUIET, all_ready, assert_shape, loaded, measure, reload_often, shape
from tests.support.circusd import Circusd
from tests.support.load import assert_no_later, assert_none_failed

Circusds = Callable[..., Circusd]
SOAK = (pytest.mark.soak, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    ("program", "numprocesses", "times", "seconds"),
    [
        pytest.param("uvicorn", 2, 3, 1.0, id="uvicorn-2"),
        pytest.param("uvicorn", 1, 1, 1.0, id="uvicorn-1"),
        pytest.param("gthread", 2, 1, 1.0, id="gthread-2"),
        pytest.param("plain", 1, 1, 0.5, id="plain-1"),
        pytest.param("uvicorn", 2, 20, 2.0, id="uvicorn-2-soak", marks=SOAK),
        pytest.param("uvicorn", 1, 20, 2.0, id="uvicorn-1-soak", marks=SOAK),
        pytest.param("gthread", 2, 20, 2.0, id="gthread-2-soak", marks=SOAK),
        pytest.param("gthread", 1, 20, 2.0, id="gthread-1-soak", marks=SOAK),
        pytest.param("plain", 2, 20, 1.0, id="plain-2-soak", marks=SOAK),
    ],
)
def test_no_new_connection_is_lost_or_late_across_reloads(
    circusd: Circusds, program: str, numprocesses: int, times: int, seconds: float
) -> None:
    """At 200 new connections/s all are answered, none 250 ms later than at rest, and everything is as before."""
    stage = circusd(program, numprocesses=numprocesses, import_seconds=seconds)
    all_ready(stage)
    before = shape(stage)
    with loaded(stage, "fresh:200") as load:
        measure(QUIET)
        began = reload_often(stage, load, times)
        result = load.stop()
    assert_none_failed(result, since=began, at_least=int(200 * (QUIET + times)))
    assert_no_later(result.between(began), result.between(0, began), since=began)
    assert_shape(stage, before)


@pytest.mark.parametrize(
    ("program", "numprocesses", "times", "seconds"),
    [
        pytest.param("uvicorn", 2, 1, 0.0, id="uvicorn-2"),
        pytest.param("gthread", 1, 2, 0.0, id="gthread-1"),
        pytest.param("uvicorn", 2, 20, 2.0, id="uvicorn-2-soak", marks=SOAK),
        pytest.param("uvicorn", 1, 20, 2.0, id="uvicorn-1-soak", marks=SOAK),
        pytest.param("gthread", 2, 20, 2.0, id="gthread-2-soak", marks=SOAK),
    ],
)
def test_kept_connections_and_running_requests_survive_reloads(
    circusd: Circusds, program: str, numprocesses: int, times: int, seconds: float
) -> None:
    """Keep-alive clients that retry as HTTP clients do, and 1 s requests in flight, lose nothing."""
    stage = circusd(program, numprocesses=numprocesses, import_seconds=seconds)
    all_ready(stage)
    with loaded(stage, "fresh:50", "keepalive:8x10", "slow:10") as load:
        measure(QUIET)
        began = reload_often(stage, load, times)
        result = load.stop()
    for kind in ("fresh", "keepalive", "slow"):
        assert_none_failed(result.of(kind), since=began, at_least=20)
    assert_no_later(result.between(began), result.between(0, began), since=began)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=SOAK, id="soak")])
def test_no_datagram_is_lost_across_reloads(circusd: Circusds, times: int) -> None:
    """A UDP socket keeps its queue: each datagram is answered, by the old process or by the new one."""
    stage = circusd("udp", leave=True)
    stage.start()
    all_ready(stage)
    with loaded(stage, "udp:100") as load:
        measure(1.0)
        began = time.monotonic()
        reload_often(stage, load, times)
        assert_none_failed(load.stop(), since=began, at_least=100)
