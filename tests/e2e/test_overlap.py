"""Replacements overlap: one long request does not hold a deploy, and the next deploy need not wait for it either.

``pytest -n 0 -m soak tests/e2e/test_overlap.py`` does it with a request of 60 s, and drained from outside too.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.e2e.rehearsal import all_ready
from tests.support.circusd import Circusd, circusd, wait_until
from tests.support.supervisord import supervisord

#: Of the time without it: what the issue grants a deploy in whose way a long request is.
_LONGER = 1.3
_SOAK = (pytest.mark.soak, pytest.mark.timeout(300))

Start = Callable[..., AbstractContextManager[Circusd]]


def ask_for(stage: Circusd, seconds: float) -> dict[str, Any]:
    """The answer to a request that takes *seconds*."""
    url = f"http://127.0.0.1:{stage.port}/slow?{seconds:g}"
    with urllib.request.urlopen(url, timeout=seconds + 30) as answer:
        said: dict[str, Any] = json.loads(answer.read())
        return said


def version_and_pid(stage: Circusd) -> dict[str, Any]:
    """Who answers a new connection."""
    return ask_for(stage, 0)


def draining(stage: Circusd) -> list[int]:
    """The old processes that `status` shows to drain."""
    return [one["pid"] for one in stage.status()["programs"][0]["reload"]["draining"]]


@pytest.mark.parametrize(
    ("start", "drain", "least"),
    [
        pytest.param(circusd, "signal", 0, id="circus-signal"),
        pytest.param(supervisord, "observe", 0, id="supervisor-observe"),
        pytest.param(circusd, "observe", 60, id="circus-observe-soak", marks=_SOAK),
        pytest.param(circusd, "signal", 60, id="circus-signal-soak", marks=_SOAK),
        pytest.param(supervisord, "signal", 60, id="supervisor-signal-soak", marks=_SOAK),
        pytest.param(supervisord, "observe", 60, id="supervisor-observe-soak", marks=_SOAK),
    ],
)
def test_long_request_holds_neither_this_deploy_nor_the_next(start: Start, drain: str, least: float) -> None:
    """With one on one of several processes the deploy is done as soon as without it, all new connections are the new
    version's, and the request is answered, though the version has changed twice meanwhile.

    The issue's bound is asserted with *least* seconds, which are for a machine that does nothing else.
    """
    count = 4 if least else 3
    watcher = {"sockshare.drain": drain, "sockshare.drain_timeout": "80", "graceful_timeout": "80"}
    if not least:
        watcher |= {"sockshare.ready_hold": "0.2", "sockshare.quiesce": "0.1"}
    if start is supervisord:
        watcher = {**watcher, "stopwaitsecs": "80", "graceful_timeout": ""}
    with start("uvicorn", numprocesses=count, watcher=watcher) as stage, ThreadPoolExecutor(1) as pool:
        all_ready(stage)
        without = stage.reload()
        assert without.status == 0, without
        took = without.ended - without.began
        seconds = max(least, 2.5 * took)
        stage.deploy("second")
        long: Future[dict[str, Any]] = pool.submit(ask_for, stage, seconds)
        wait_until(lambda: _busy(stage), 5, "the request has arrived", 0.05)
        reload = stage.reload()
        assert reload.status == 0, reload
        assert not long.done(), f"{seconds} s have passed: the deploy waited for the request\n{reload}"
        if least:
            print(f"{reload.ended - reload.began:.2f} s, without the request {took:.2f} s")
            assert reload.ended - reload.began <= _LONGER * took, f"{without}\n{reload}"
        assert "takes nothing new" in reload.reason
        assert {version_and_pid(stage)["version"] for _ in range(20)} == {"second"}
        [old] = draining(stage)
        stage.deploy("third")
        again = stage.reload()
        assert again.status == 0, again
        assert draining(stage) == ([] if long.done() else [old])
        assert {version_and_pid(stage)["version"] for _ in range(20)} == {"third"}
        assert long.result() == {"version": "v1", "pid": old}
        wait_until(lambda: len(stage.pids()) == count == stage.numprocesses(), 20, "as many are left", 0.1)
        wait_until(lambda: not draining(stage), 20, "nothing drains", 0.1)


def _busy(stage: Circusd) -> bool:
    holders = stage.status()["sockets"][0]["holders"]
    return any(one["connections"] for one in holders)


@pytest.mark.parametrize("start", [circusd, supervisord], ids=["circus", "supervisor"])
def test_broker_killed_while_old_ones_drain_finishes_what_was_begun(start: Start) -> None:
    """One that drains and the turn in front are in the journal: the next broker goes on with both."""
    watcher = {"sockshare.drain": "observe", "sockshare.drain_timeout": "30"}
    with start("uvicorn", numprocesses=2, watcher=watcher) as stage, ThreadPoolExecutor(40) as pool:
        all_ready(stage)
        stage.deploy("second")
        slow: list[Future[dict[str, Any]]] = []

        def are_all_busy() -> bool:
            slow.append(pool.submit(ask_for, stage, 6))
            return all(one["connections"] for one in stage.status()["sockets"][0]["holders"])

        wait_until(are_all_busy, 5, "each has a request", 0.05)
        command = stage.command("reload", "web", "--json")
        try:
            wait_until(lambda: draining(stage) and _step(stage) in ("warm", "hold"), 15, "one drains, one warms", 0.02)
            stage.kill(stage.broker())
            output, errors = command.communicate(timeout=60)
        finally:
            command.kill()
            command.communicate()
        assert command.returncode == 0, output + errors
        assert {version_and_pid(stage)["version"] for _ in range(20)} == {"second"}
        assert {one.result()["version"] for one in slow} == {"v1"}
        wait_until(lambda: len(stage.pids()) == 2 == stage.numprocesses(), 20, "two are left", 0.1)
        assert stage.reload().status == 0


def _step(stage: Circusd) -> str:
    return str(stage.status()["programs"][0]["reload"]["state"])
