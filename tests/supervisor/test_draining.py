"""Draining, verifying and settling must hold under supervisord as under circus: the same tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e import test_drain, test_verify
from tests.e2e.rehearsal import all_ready, shape
from tests.supervisor.test_must_hold import SOAK
from tests.support.supervisord import Supervisord

Supervisords = Callable[..., Supervisord]


@pytest.mark.parametrize(
    ("program", "times", "clients"),
    [
        pytest.param("threaded", 1, 2, id="threaded"),
        pytest.param("node", 1, 2, id="node", marks=SOAK),
        *(pytest.param(program, 20, 4, id=f"{program}-soak", marks=SOAK) for program in test_drain.SLOW),
    ],
)
def test_no_request_is_lost_when_a_server_without_a_handler_is_replaced(
    supervisord: Supervisords, program: str, times: int, clients: int
) -> None:
    """0 of the 1 s requests in flight, 0 of those of keep-alive clients at 100 requests/s each, who retry once."""
    test_drain.test_no_request_is_lost_when_a_server_without_a_handler_is_replaced(supervisord, program, times, clients)


@pytest.mark.parametrize(
    ("program", "options", "how", "times"),
    [
        pytest.param("blocking", {"sock": {"blocking": "true"}}, "from outside", 1, id="blocking-accept", marks=SOAK),
        pytest.param("sync", {}, "gunicorn drains itself on TERM", 1, id="gunicorn-sync", marks=SOAK),
        pytest.param("blocking", {"sock": {"blocking": "true"}}, "from outside", 20, id="blocking-soak", marks=SOAK),
        pytest.param("sync", {}, "gunicorn drains itself on TERM", 20, id="gunicorn-sync-soak", marks=SOAK),
    ],
)
def test_no_request_is_lost_by_servers_without_an_event_registration(
    supervisord: Supervisords, program: str, options: dict[str, dict[str, str]], how: str, times: int
) -> None:
    """A blocking accept() and gunicorn's sync worker."""
    test_drain.test_no_request_is_lost_by_servers_without_an_event_registration(
        supervisord, program, options, how, times
    )


@pytest.mark.soak
def test_client_of_a_server_that_ignores_its_end_does_not_wait_for_that(supervisord: Supervisords) -> None:
    """As hypercorn: it reads no more, and closes the connection 5 s later; clients are shown the end before."""
    test_drain.test_client_of_a_server_that_ignores_its_end_does_not_wait_for_that(supervisord)


@pytest.mark.soak
def test_reload_ends_when_it_is_not_drained_in_time(supervisord: Supervisords) -> None:
    """A request that never ends is waited for as long as `sockshare_drain_timeout` says."""
    test_drain.test_reload_says_what_is_left_and_ends_when_it_is_not_drained_in_time(supervisord)


@pytest.mark.parametrize(
    ("program", "times"),
    [
        pytest.param("node", 1, id="node"),
        pytest.param("node", 20, id="node-soak", marks=SOAK),
        pytest.param("threaded", 20, id="threaded-soak", marks=SOAK),
    ],
)
def test_old_one_serves_on_when_the_page_does_not_answer(supervisord: Supervisords, program: str, times: int) -> None:
    """500, and no answer at all: rolled back to the same process; next to nobody met the bad version."""
    stage: Any = supervisord(program, watcher=test_verify.VERIFIED)
    all_ready(stage)
    before = shape(stage)
    for fault, status, said in (
        ("answer_500", 5, "http:/health failed: it answered 500 "),
        ("hang_requests", 6, "has not answered from the new process within 2 s"),
    ):
        test_verify.test_old_one_serves_on_when_the_page_does_not_answer(stage, before, fault, status, said, times)


def test_good_version_takes_over_once_its_page_has_answered(supervisord: Supervisords) -> None:
    """A sibling that answers is no proof: the page is asked for until the new process has answered."""
    test_verify.test_good_version_takes_over_once_its_page_has_answered(supervisord)


@pytest.mark.parametrize("step", ["switch", pytest.param("drain", marks=SOAK)])
def test_old_one_takes_over_again_when_the_new_one_crashes_after_the_switch(
    supervisord: Supervisords, step: str
) -> None:
    """While it settles, and while the old one is drained: the same process serves, its requests in flight too."""
    test_verify.test_old_one_takes_over_again_when_the_new_one_crashes_after_the_switch(supervisord, step)
