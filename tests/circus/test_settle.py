"""Who goes when a real circusd is to have fewer processes, when, and with whom."""

from __future__ import annotations

import time

import pytest

from sockshare.cli.stage import wait_until
from tests.circus.test_command import Circus, Start, circus
from tests.support.circusd import is_running

__all__ = ["circus"]


def gone_after(one: Circus, pids: list[int]) -> list[float]:
    """Seconds until each of *pids* was gone."""
    began, ended = time.monotonic(), dict.fromkeys(pids, 0.0)

    def are_gone() -> bool:
        for pid in pids:
            if not ended[pid] and not is_running(pid):
                ended[pid] = time.monotonic() - began
        return all(ended.values())

    wait_until(are_gone, 20, "they are gone", 0.02)
    return list(ended.values())


def test_youngest_stranger_goes_when_there_are_too_many(circus: Start) -> None:
    """A new process that crashed was respawned: that one is too many, neither a known one nor one that was there."""
    one = circus(numprocesses=1)
    [old] = one.live()
    first, second = one.begin(), one.begin()
    assert one.settle([], [old], 2)["retired"] == [second]
    assert one.live() == [old, first]
    third = one.begin()
    assert one.settle([], [old, third], 2)["retired"] == [first]
    assert one.live() == [old, third]
    wait_until(lambda: one.noted("signalled") == {first, second}, 10, "these and no others have their signal", 0.02)


def test_workers_go_with_a_newcomer_that_ends_by_its_signal(circus: Start) -> None:
    """It has had time to end properly, and leaves them: they would serve on."""
    one = circus(numprocesses=1)
    [old] = one.live()
    for name in ("forking", "drained"):
        (one.directory / name).touch()
    new = one.begin()
    wait_until(lambda: one.noted("workers"), 10, "it has a worker", 0.02)
    [worker] = one.noted("workers")
    one.settle([new], [old], 1, kill=True, patience=10.0)
    gone_after(one, [new, worker])
    assert one.live() == [old]


@pytest.mark.parametrize("keys", ["graceful_timeout = 1\n"])
def test_retired_process_has_as_long_as_circus_gives_to_any(circus: Start, keys: str) -> None:
    """Of two that do not end, one stopped by circus and one retired, both are killed at the same time."""
    one = circus(keys)
    theirs, ours = one.live()
    assert one.call("kill", name="web", pid=theirs)["status"] == "ok"
    one.settle([ours], [theirs], 1)
    by_circus, by_us = gone_after(one, [theirs, ours])
    assert by_circus * 0.5 < by_us < by_circus * 1.5
