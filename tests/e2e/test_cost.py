"""What a stop has cost is looked at, said, and learned from."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.rehearsal import all_ready, assert_replaced, loaded, measure
from tests.support.circusd import APPS, Circusd, Reload, wait_until
from tests.support.load import Result, assert_none_failed

Circusds = Callable[..., Circusd]
SHORT = {"sockshare.ready_hold": "0.2"}
#: Seconds of load: requests of a second are under way at any time after it.
IN_HAND = 1.2


def reload(stage: Circusd) -> Reload:
    """Reload; all is replaced."""
    before = stage.pids()
    found = stage.reload()
    assert_replaced(stage, before, found)
    return found


def said(found: Reload, step: str) -> dict[str, Any]:
    """The last line of that step."""
    return next(line for line in reversed(found.steps) if line["step"] == step)


def test_requests_that_a_stop_signal_cuts_are_counted_and_the_next_reload_cuts_none(circusd: Circusds) -> None:
    """A handler is not a drain. What was learned survives the broker."""
    check_what_is_learned(circusd("abrupt", watcher=SHORT))


def check_what_is_learned(stage: Circusd) -> None:
    """See the test."""
    all_ready(stage)
    with loaded(stage, "slow:8") as load:
        measure(IN_HAND)
        first = reload(stage)
        cut = said(first, "done")["cost"]["cut"]
        assert said(first, "drain")["reason"] == "it is left to its handler of TERM"
        assert said(first, "stop")["cost"]["cut"] == cut
        whom = said(first, "stop")["process"]
        assert said(first, "done")["reason"] == (
            f"{cut} requests were cut: {whom} ends too soon on TERM; the next reload ends its connections first"
        )
        measure(IN_HAND)
        stage.kill(stage.broker())
        all_ready(stage)
        second = reload(stage)
        assert said(second, "drain")["reason"] == "no connection left"
        assert any(f"{cut} requests were cut when it was left to TERM" in str(line["reason"]) for line in second.steps)
        assert said(second, "done")["reason"] == ""
        assert said(second, "done")["cost"]["cut"] == 0
        result: Result = load.stop()
    lost = len(result.failures)
    assert cut == lost, f"{cut} were said to be cut, and {lost} were"
    assert 1 < cut < 12
    assert_none_failed(result.between(second.began), since=second.began)


def named_daphne(directory: Path) -> str:
    """The command of a server that a handler ends at once, and that its name gives away."""
    shutil.copy(APPS / "abrupt.py", directory / "daphne")
    return f"{sys.executable} -m sockshare exec -- {sys.executable} {directory}/daphne"


def test_first_reload_of_a_server_known_to_stop_at_once_cuts_none(circusd: Circusds, tmp_path: Path) -> None:
    """Nothing has to be lost to learn it: its name says it."""
    check_what_is_known(circusd("abrupt", watcher={**SHORT, "cmd": named_daphne(tmp_path)}))


def check_what_is_known(stage: Circusd) -> None:
    """See the test."""
    all_ready(stage)
    with loaded(stage, "slow:8") as load:
        measure(IN_HAND)
        found = reload(stage)
        result: Result = load.stop()
    assert any("daphne stops at once on TERM" in str(line["reason"]) for line in found.steps), found
    assert said(found, "drain")["reason"] == "no connection left"
    assert said(found, "done")["cost"]["cut"] == 0, found
    assert_none_failed(result, since=found.began, at_least=8)


def test_request_that_outlasts_the_drain_is_counted_with_its_cause(circusd: Circusds) -> None:
    """Whoever drained: the last line has the number, and what to do."""
    stage = circusd("threaded", watcher={**SHORT, "sockshare.drain_timeout": "0.3"})
    all_ready(stage)
    with loaded(stage, "slow:8") as load:
        measure(IN_HAND)
        found = reload(stage)
        lost = len(load.stop().failures)
    assert said(found, "done")["cost"]["cut"] == lost > 0
    why = f"{lost} requests were cut: they took longer than drain_timeout, 0.3 s"
    assert said(found, "done")["reason"] == why
    last = wait_until(lambda: stage.status()["programs"][0]["reload"].get("last"), 5, "status has the reload")
    assert last["reason"] == why
